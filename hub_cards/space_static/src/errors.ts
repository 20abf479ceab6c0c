/** What a visitor did that cannot work: the message says what was found and what to do. */
export class UserError extends Error {}
