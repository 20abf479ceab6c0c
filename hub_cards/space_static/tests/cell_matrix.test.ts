import { expect, it } from "vitest";
import { denseReader, joined } from "../src/cell_matrix";
import { isOfMemory } from "../src/errors";

it("dense rows that are read in parts are the rows that are read at once", () => {
  const columns = 3_000_000, values = new Float64Array(3 * columns), asked: number[] = [];
  for (const place of [5, 777_777, columns - 1, 2 * columns, 3 * columns - 1]) values[place] = place;
  const read = (start: number, stop: number) => {
    asked.push(stop - start);
    return values.subarray(start * columns, stop * columns);
  };

  const { indptr, indices, data } = denseReader(read, columns)(0, 3);

  expect(asked).toEqual([1, 1, 1]);
  expect(Array.from(indptr)).toEqual([0, 3, 3, 5]);
  expect(Array.from(indices)).toEqual([5, 777_777, columns - 1, 0, columns - 1]);
  expect(Array.from(data)).toEqual([5, 777_777, columns - 1, 2 * columns, 3 * columns - 1]);
});

it("no blocks are no rows", () => {
  expect(joined([]).indptr.length).toBe(1);
});

it.each(["std::bad_alloc", "Array buffer allocation failed", "memory access out of bounds", "Memory allocation of 180224000 bytes failed"])(
  "“%s” is of memory",
  (said) => expect(isOfMemory(new Error(said))).toBe(true),
);

it("other errors are not", () => {
  expect(isOfMemory(new Error("file signature not found"))).toBe(false);
});
