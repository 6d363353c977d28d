/**
 * The page's elements by id, and two ways to change them.
 *
 * @module elements
 */

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/** Changes an element's text only where it differs, so that screen readers are not told the same thing again. @param {Element} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * @param {string} tag
 * @param {string} text
 * @param {string} [className]
 */
export function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}
