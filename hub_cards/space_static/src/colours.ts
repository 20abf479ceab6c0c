// Colours of cells: apart from one another, and from the ground that they lie on.

export type Rgb = [number, number, number];

export const isDark = matchMedia("(prefers-color-scheme: dark)");
export const UNKNOWN_COLOUR: Rgb = [0.52, 0.55, 0.58];
const ON_LIGHT = [0.56, 0.47, 0.63], ON_DARK = [0.7, 0.62, 0.8];

/** A colour for a number, at least three times as bright or as dark as the ground. */
export function colourOf(number: number): Rgb {
  return oklch((isDark.matches ? ON_DARK : ON_LIGHT)[number % 3], number % 2 ? 0.12 : 0.17, (number * 137.5 + 235) % 360);
}

/** From what nearly vanishes in the ground to what stands out, for a share from 0 to 1. */
export function shade(share: number): Rgb {
  const within = Math.min(Math.max(share, 0), 1), lightness = isDark.matches ? 0.42 + 0.4 * within : 0.82 - 0.34 * within;
  return oklch(lightness, 0.03 + 0.15 * within, 250 - 210 * within);
}

export const css = ([red, green, blue]: Rgb) => `rgb(${[red, green, blue].map((part) => Math.round(255 * part)).join(" ")})`;

function oklch(lightness: number, chroma: number, hue: number): Rgb {
  const a = chroma * Math.cos((hue * Math.PI) / 180), b = chroma * Math.sin((hue * Math.PI) / 180);
  const [l, m, s] = [
    lightness + 0.3963377774 * a + 0.2158037573 * b, lightness - 0.1055613458 * a - 0.0638541728 * b, lightness - 0.0894841775 * a - 1.291485548 * b,
  ].map((part) => part ** 3);
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s, -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((part) => {
    const bounded = Math.min(Math.max(part, 0), 1);
    return bounded <= 0.0031308 ? 12.92 * bounded : 1.055 * bounded ** (1 / 2.4) - 0.055;
  }) as Rgb;
}
