// Small parts of the page.

import { css, type Rgb } from "./colours";

export function element(tag: string, text: string, kind = ""): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

export function meter(share: number): HTMLMeterElement {
  const made = document.createElement("meter");
  made.value = share;
  made.setAttribute("aria-hidden", "true"); // the figure stands beside it
  return made;
}

/** A spot of colour; an attribute, since the page allows no inline styles. */
export function dot(colour: Rgb): SVGElement {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg"), spot = document.createElementNS(picture.namespaceURI, "circle");
  picture.setAttribute("viewBox", "0 0 10 10");
  picture.setAttribute("aria-hidden", "true");
  for (const [name, value] of [["cx", "5"], ["cy", "5"], ["r", "5"], ["fill", css(colour)]]) spot.setAttribute(name, value);
  picture.append(spot);
  return picture as SVGElement;
}
