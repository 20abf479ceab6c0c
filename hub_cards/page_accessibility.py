"""Who cannot see well, or uses no mouse: contrast after WCAG 2.2, names of controls, and width on narrow screens."""

from __future__ import annotations

from typing import Any

LEAST_OF_TEXT, LEAST_OF_LARGE_TEXT, LEAST_OF_PARTS = 4.5, 3.0, 3.0  # success criteria 1.4.3 and 1.4.11

# Contrast as WCAG defines it, for all text that is shown, for the edges of controls, and for spots of colour.
_CONTRAST = """
() => {
  for (const change of document.getAnimations()) change.finish(); // a colour on its way to another says nothing
  const parsed = (said) => {
    if (!/^(rgba?|color\\(srgb)/.test(said)) throw new Error(`a colour of another kind: ${said}`);
    const [red, green, blue, alpha = 1] = said.match(/[\\d.]+(?:e-?\\d+)?/g).map(Number);
    const scale = said.startsWith("color(") ? 255 : 1;
    return { rgb: [red * scale, green * scale, blue * scale], alpha };
  };
  const over = (upper, lower) => upper.rgb.map((part, at) => part * upper.alpha + lower[at] * (1 - upper.alpha));
  const groundOf = (element) => {
    if (!element) return [255, 255, 255];
    const own = parsed(getComputedStyle(element).backgroundColor);
    return own.alpha === 1 ? own.rgb : over(own, groundOf(element.parentElement));
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ratio = (one, other) => {
    const [high, low] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true }) && !element.closest(":disabled, [aria-hidden=true]");
  const found = [];
  const note = (kind, what, colour, ground) => found.push({ kind, what: what.slice(0, 40), ratio: ratio(over(parsed(colour), ground), ground) });
  for (const element of document.querySelectorAll("body *")) {
    if (!isShown(element)) continue;
    const style = getComputedStyle(element), ground = groundOf(element);
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (text && element.tagName !== "SCRIPT") note(isLarge ? "large text" : "text", text, style.color, ground);
    if (element.placeholder && !element.value) note("text", element.placeholder, getComputedStyle(element, "::placeholder").color, ground);
    const isBox = element.matches("select, textarea, input:not([type=radio], [type=checkbox])");
    if (isBox) note("part", element.id, style.borderTopColor, groundOf(element.parentElement));
  }
  for (const spot of document.querySelectorAll("#legend circle")) note("part", "spot of the legend", getComputedStyle(spot).fill, groundOf(spot.closest("button")));
  return found;
}
"""

_NAMELESS = """
() => [...document.querySelectorAll("input, button, select, textarea, canvas[tabindex], [role=img], [role=region]")]
  .filter((element) => element.checkVisibility())
  .filter((element) => !(element.getAttribute("aria-label") || element.getAttribute("aria-labelledby") || element.innerText ||
    [...(element.labels ?? [])].map((label) => label.innerText).join("")))
  .map((element) => element.id || element.outerHTML.slice(0, 60))
"""


def contrast(page: Any) -> dict[str, Any]:
    """The lowest contrast of text and of parts, and everything that has less than WCAG 2.2 asks for."""
    found = page.evaluate(_CONTRAST)
    least = {"text": LEAST_OF_TEXT, "large text": LEAST_OF_LARGE_TEXT, "part": LEAST_OF_PARTS}
    lowest = {kind: round(min(one["ratio"] for one in found if one["kind"] == kind), 2) for kind in ("text", "part")}
    return {
        "texts_and_parts": len(found),
        "lowest_of_text": lowest["text"],
        "lowest_of_parts": lowest["part"],
        "too_low": [one for one in found if one["ratio"] < least[one["kind"]]],
    }


def nameless(page: Any) -> list[str]:
    """Controls that a screen reader could not name."""
    return page.evaluate(_NAMELESS)


def overhang(page: Any) -> int:
    """By how many pixels the page is wider than its window (success criterion 1.4.10 allows none at 320)."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def tab_to(page: Any, name: str, most: int = 80) -> None:
    """Press the tab key until the element of that id has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == name:
            return
    raise AssertionError(f"{most} presses of the tab key do not lead to #{name}.")
