// The byte-level BPE tokenizer of the text tower, read from its tokenizer.json.

interface TokenizerJson {
  added_tokens: { id: number; content: string }[];
  pre_tokenizer: { type: string; add_prefix_space: boolean };
  model: { type: string; vocab: Record<string, number>; merges: (string | [string, string])[] };
  post_processor: { type: string; special_tokens: Record<string, { ids: number[] }>; single: Record<string, { id: string }>[] };
  normalizer: unknown;
}

const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export class TextTokenizer {
  private vocabulary: Map<string, number>;
  private rankOf: Map<string, number>;
  private letters = byteLetters();
  private known = new Map<string, number[]>();
  private before: number[] = [];
  private after: number[] = [];
  private added: Map<string, number>;

  constructor(private json: TokenizerJson, private longest: number) {
    if (json.model.type !== "BPE" || json.pre_tokenizer?.type !== "ByteLevel" || json.normalizer) {
      throw new Error("This page reads byte-level BPE tokenizers only.");
    }
    this.vocabulary = new Map(Object.entries(json.model.vocab));
    const merges = json.model.merges.map((merge) => (typeof merge === "string" ? merge : merge.join(" ")));
    this.rankOf = new Map(merges.map((merge, rank) => [merge, rank]));
    this.added = new Map(json.added_tokens.map(({ content, id }) => [content, id]));
    let target = this.before;
    for (const part of json.post_processor?.single ?? []) {
      if ("Sequence" in part) target = this.after;
      else target.push(...json.post_processor.special_tokens[part.SpecialToken.id].ids);
    }
  }

  encode(text: string): number[] {
    const ids = this.pieces(text).flatMap((piece) => {
      const added = this.added.get(piece);
      return added === undefined ? this.plain(piece) : [added];
    });
    const room = this.longest - this.before.length - this.after.length;
    return [...this.before, ...ids.slice(0, room), ...this.after];
  }

  /** The text between tokens that were added to the vocabulary, and these. */
  private pieces(text: string): string[] {
    const names = [...this.added.keys()].map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    return text.split(new RegExp(`(${names.join("|")})`)).filter(Boolean);
  }

  private plain(text: string): number[] {
    const spaced = this.json.pre_tokenizer.add_prefix_space && !/^\s/.test(text) ? ` ${text}` : text;
    return (spaced.match(WORDS) ?? []).flatMap((word) => this.word(word));
  }

  private word(word: string): number[] {
    const known = this.known.get(word);
    if (known) return known;
    let parts = [...new TextEncoder().encode(word)].map((byte) => this.letters[byte]);
    for (;;) {
      let best = Infinity, place = -1;
      for (let at = 0; at + 1 < parts.length; at++) {
        const rank = this.rankOf.get(`${parts[at]} ${parts[at + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, at];
      }
      if (place < 0) break;
      const [first, second] = [parts[place], parts[place + 1]], merged: string[] = [];
      for (let at = 0; at < parts.length; at++) {
        if (parts[at] === first && parts[at + 1] === second) {
          merged.push(first + second);
          at++;
        } else merged.push(parts[at]);
      }
      parts = merged;
    }
    const ids = parts.map((part) => this.vocabulary.get(part)!).filter((id) => id !== undefined);
    this.known.set(word, ids);
    return ids;
  }
}

/** The letter that stands for each byte, as GPT-2 chose them. */
function byteLetters(): string[] {
  const isPrinted = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrinted(byte) ? byte : next++));
}
