export function kernelOf(text: string): Promise<string>;
export function written(kernel: string): string;
