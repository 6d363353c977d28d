/**
 * An error in the place where it belongs: its sentence, and its code.
 *
 * @module problem-view
 */

import { ApiError } from "./avatar-client.js";
import { make } from "./elements.js";
import { explained, t } from "./strings.js";

/** The sentence of an error in the page's language, and its code. @param {unknown} error @returns {{message: string, code: string}} */
export function described(error) {
  if (!(error instanceof ApiError)) return { message: error instanceof Error ? error.message : String(error), code: "page" };
  const missing = error.code === "conversation_unavailable";
  const message = missing ? t("talk.unavailable", { detail: error.message }) : explained(error.code, error.message);
  return { message: error.retryAfterS ? t("problem.retry", { message, seconds: error.retryAfterS }) : message, code: error.code };
}

/** Shows an error in an element with `role="alert"`; null hides it. @param {HTMLElement} alert @param {unknown} error */
export function showIn(alert, error) {
  alert.hidden = error === null;
  if (error === null) return void alert.replaceChildren();
  const { message, code } = described(error);
  alert.replaceChildren(make("p", message), make("code", code));
}

/** Sentences with their codes as items of a list. @param {import("./avatar-client.js").Coded[]} warnings */
export function warningItems(warnings) {
  return warnings.map(({ code, message }) => {
    const item = make("li", `${explained(code, message)} `);
    item.append(make("code", code));
    return item;
  });
}
