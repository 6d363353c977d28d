/**
 * What a visitor chose, for the next visit. Where the browser allows no storage it lasts as long as the page.
 *
 * @module choices
 */

/** The choice of an earlier visit; null where there is none. @param {string} name @returns {string | null} */
export function storedChoice(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

/** @param {string} name @param {string} choice */
export function storeChoice(name, choice) {
  try {
    localStorage.setItem(name, choice);
  } catch {
    // The browser allows no storage.
  }
}
