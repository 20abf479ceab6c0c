import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

// Loaded as they are, because their threads load them again by name: for every browser, and for those with WebGPU.
const RUNTIME = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs"];
const PACKED = ["ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.jspi.wasm"];

/** The runtime, the Space's card, and a service worker that knows the files of this build. */
function besides(): Plugin {
  let out = "dist";
  return {
    name: "besides",
    configResolved(config) {
      out = resolve(config.root, config.build.outDir);
    },
    generateBundle(_, bundle) {
      const files = ["./", ...Object.keys(bundle).map((name) => `./${name}`), ...RUNTIME.slice(0, 2).map((name) => `./ort/${name}`), `./ort/${PACKED[0]}.gz`];
      const version = Math.random().toString(36).slice(2);
      const source = readFileSync("src/sw.js", "utf8").replace("__FILES__", JSON.stringify(files)).replace("__VERSION__", version);
      this.emitFile({ type: "asset", fileName: "sw.js", source });
      this.emitFile({ type: "asset", fileName: "README.md", source: readFileSync("README.md", "utf8") });
    },
    writeBundle() {
      const from = dirname(createRequire(import.meta.url).resolve("onnxruntime-web/wasm"));
      mkdirSync(join(out, "ort"), { recursive: true });
      for (const name of RUNTIME) copyFileSync(join(from, name), join(out, "ort", name));
      for (const name of PACKED) writeFileSync(join(out, "ort", `${name}.gz`), gzipSync(readFileSync(join(from, name)), { level: 9 }));
      copyFileSync("sample.h5ad", join(out, "sample.h5ad"));
      copyFileSync("node_modules/h5wasm/LICENSE.txt", join(out, "LICENSE_h5wasm.txt")); // wants to stay with the software
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [besides()],
  build: { target: "es2022", emptyOutDir: true, chunkSizeWarningLimit: 6000, modulePreload: { polyfill: false } },
  worker: { format: "es" },
});
