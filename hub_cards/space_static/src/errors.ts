/** What a visitor did that cannot work: the message says what was found and what to do. */
export class UserError extends Error {}

/** Whether memory was not enough, as browsers, the runtime and the HDF5 library say it. */
export const isOfMemory = (error: Error) => error instanceof RangeError || /memory|alloc|out of bounds/i.test(error.message);
