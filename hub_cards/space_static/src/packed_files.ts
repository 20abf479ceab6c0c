// Files of a model folder: gzip, JSON, safetensors.

/** What was packed; as it is where a server has unpacked it on its way. */
export async function gunzip(packed: ArrayBuffer): Promise<ArrayBuffer> {
  const head = new Uint8Array(packed, 0, Math.min(packed.byteLength, 2));
  if (head[0] !== 0x1f || head[1] !== 0x8b) return packed;
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

export const textOf = (bytes: ArrayBuffer) => new TextDecoder().decode(bytes);

/** Arrays of a safetensors file by name, with their shapes. */
export function safetensors(bytes: ArrayBuffer): Map<string, { shape: number[]; values: Int32Array | Int8Array | Float32Array }> {
  const length = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(textOf(bytes.slice(8, 8 + length)));
  const types = { I32: Int32Array, I8: Int8Array, F32: Float32Array };
  const arrays = new Map();
  for (const [name, entry] of Object.entries<{ dtype: keyof typeof types; shape: number[]; data_offsets: [number, number] }>(header)) {
    if (name === "__metadata__") continue;
    const [from, to] = entry.data_offsets.map((offset) => 8 + length + offset);
    arrays.set(name, { shape: entry.shape, values: new types[entry.dtype](bytes.slice(from, to)) });
  }
  return arrays;
}
