/**
 * The page's Bearer token: a short-lived page token where the server issues one (the demo), else an API key that the user types in. The
 * key is kept in this tab's session storage and nowhere else.
 *
 * @module credentials
 */

import { ApiError } from "./avatar-client.js";
import { t } from "./strings.js";

const STORED = "avatar.api-key";
const RENEW_BEFORE_MS = 30_000;
/** Hosts on which a server issues page tokens. */
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

export class Credentials {
  /** @param {(refused: boolean) => Promise<string|null>} ask asks the user for the key; null when cancelled */
  constructor(ask) {
    this.ask = ask;
    /** @type {{token: string, until: number} | null} */
    this.page = null;
    this.issuesTokens = true;
    /** @type {Promise<string> | null} */
    this.finding = null;
  }

  /** Whether there is a token that the user need not be asked for. @returns {Promise<boolean>} */
  async known() {
    if (sessionStorage.getItem(STORED) !== null) return true;
    return LOOPBACK.test(location.hostname) && (await this.#pageToken().catch(() => null)) !== null;
  }

  /** @param {boolean} refused the server answered 401 to the last token @returns {Promise<string>} */
  find(refused) {
    if (refused) {
      this.page = null;
      sessionStorage.removeItem(STORED);
    }
    this.finding ??= this.#find(refused).finally(() => (this.finding = null));
    return this.finding;
  }

  /** @param {boolean} refused */
  async #find(refused) {
    if (this.page && Date.now() < this.page.until - RENEW_BEFORE_MS) return this.page.token;
    if (this.issuesTokens) {
      const token = await this.#pageToken();
      if (token) return token;
    }
    const stored = sessionStorage.getItem(STORED);
    if (stored) return stored;
    const key = await this.ask(refused);
    if (!key) throw new ApiError(t("key.needed"), { code: "unauthorized", status: 401 });
    sessionStorage.setItem(STORED, key);
    return key;
  }

  async #pageToken() {
    let answer;
    try {
      answer = await fetch("page/token", { cache: "no-store" });
    } catch {
      throw new ApiError(t("key.unreachable"), { code: "network" });
    }
    if (!answer.ok) {
      this.issuesTokens = answer.status !== 404;
      return null;
    }
    const { token, expires_at } = await answer.json();
    this.page = { token, until: Date.parse(expires_at) || Date.now() + 60_000 };
    return token;
  }
}

/**
 * Asks for the API key in the page's dialog.
 * @param {HTMLDialogElement} dialog
 * @param {boolean} refused
 * @returns {Promise<string|null>}
 */
export function askForKey(dialog, refused) {
  const input = /** @type {HTMLInputElement} */ (dialog.querySelector("input"));
  const text = /** @type {HTMLElement} */ (dialog.querySelector("p"));
  text.textContent = t(refused ? "key.refused" : "key.text");
  dialog.querySelector("#key-cancel")?.addEventListener("click", () => dialog.close(""), { once: true });
  dialog.querySelector("form")?.addEventListener("submit", () => (dialog.returnValue = "given"), { once: true });
  dialog.returnValue = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        resolve(dialog.returnValue === "given" ? input.value.trim() : null);
        input.value = "";
      },
      { once: true },
    );
  });
}
