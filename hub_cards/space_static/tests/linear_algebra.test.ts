import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { kernelOf, written } from "../kernel.mjs";
import { dot, largestEigen, products, softmax } from "../src/linear_algebra";

const numbers = (size: number, seed: number) => Float32Array.from({ length: size }, (_, at) => Math.sin(1 + seed * at * 12.9898) * 2);

it.each([[1, 1, 1], [3, 5, 7], [2, 4, 256], [9, 6, 286]])("products of %i with %i rows of %i are sums of products", (n, m, depth) => {
  const left = numbers(n * depth, 1), right = numbers(m * depth, 2);

  const found = products(left, right, depth);

  for (let row = 0; row < n; row++) {
    for (let column = 0; column < m; column++) {
      let expected = 0;
      for (let at = 0; at < depth; at++) expected += left[row * depth + at] * right[column * depth + at];
      expect(found[row * m + column]).toBeCloseTo(expected, 3);
    }
  }
});

it("the kernel is the one that its text says", async () => {
  const text = readFileSync(new URL("../src/kernel.wat", import.meta.url), "utf8");

  expect(written(await kernelOf(text))).toBe(readFileSync(new URL("../src/kernel.ts", import.meta.url), "utf8"));
});

it("the largest eigenvectors solve their equation and are at right angles", () => {
  const n = 40, root = numbers(n * n, 3), matrix = new Float64Array(n * n);
  for (let row = 0; row < n; row++) for (let column = 0; column < n; column++) for (let at = 0; at < n; at++) matrix[row * n + column] += root[row * n + at] * root[column * n + at];

  const { values, vectors } = largestEigen(matrix, n, 5);

  vectors.forEach((vector, place) => {
    const image = Float64Array.from({ length: n }, (_, row) => dot(matrix.subarray(row * n, (row + 1) * n) as Float64Array, vector));
    image.forEach((value, at) => expect(value).toBeCloseTo(values[place] * vector[at], 6));
    vectors.forEach((other, at) => expect(dot(vector, other)).toBeCloseTo(Number(at === place), 8));
  });
  expect([...values].sort((one, other) => other - one)).toEqual(values);
});

it("probabilities sum to one, whatever the logits", () => {
  const found = softmax(Float32Array.from([1000, 1001, -5, 0, 0, 0]), 3, 2);

  expect(found[0] + found[1] + found[2]).toBeCloseTo(1, 6);
  expect(found[3]).toBeCloseTo(1 / 3, 6);
});
