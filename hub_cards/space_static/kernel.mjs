// Writes src/kernel.ts from src/kernel.wat.

import { readFileSync, writeFileSync } from "node:fs";
import wabt from "wabt";

export async function kernelOf(text) {
  const module = (await wabt()).parseWat("kernel.wat", text, { simd: true });
  return Buffer.from(module.toBinary({}).buffer).toString("base64");
}

export const written = (kernel) => `// Written from kernel.wat by \`npm run kernel\`.

export const KERNEL =
  "${kernel.match(/.{1,110}/g).join('" +\n  "')}";
`;

if (process.argv[1] === import.meta.filename) {
  writeFileSync("src/kernel.ts", written(await kernelOf(readFileSync("src/kernel.wat", "utf8"))));
}
