/**
 * The avatars to choose from: the demo face and those of the library, each a radio button with its poster, its name and its state.
 *
 * @module gallery
 */

import { $, make, setText } from "./elements.js";
import { explained, t } from "./strings.js";

// By this file's address, so that both come from the same version of the page as it.
const POSTER = new URL("./poster.jpg", import.meta.url).href;
const PLACEHOLDER = new URL("./face.svg", import.meta.url).href;
export const DEMO = "demo";

/** @typedef {import("./avatar-client.js").LibraryAvatar} LibraryAvatar */

/**
 * @typedef {object} Tile
 * @property {LibraryAvatar} avatar as it was seen last
 * @property {HTMLLabelElement} label
 * @property {string} poster address of its picture; "" before there is one
 * @property {AbortController} ending ends what is asked for it
 */

export class Gallery {
  /**
   * @param {object} parts
   * @param {import("./avatar-client.js").AvatarClient} parts.client
   * @param {(error: unknown) => void} parts.showError
   * @param {() => void} parts.onPick another one is picked, or the picked one is not as it was
   */
  constructor({ client, showError, onPick }) {
    this.client = client;
    this.showError = showError;
    this.onPick = onPick;
    /** By id, in the order in which they are shown. @type {Map<string, Tile>} */
    this.tiles = new Map();
    this.loaded = false;
    /** Of the next page of the library; null where there is none. @type {string | null} */
    this.next = null;
    $("avatars").addEventListener("change", () => this.#picked());
    $("more-avatars").addEventListener("click", () => void this.load(this.next ?? undefined));
    $("load-avatars").addEventListener("click", () => void this.load());
    this.translate();
  }

  /** Id of the one that is picked. @returns {string} */
  get picked() {
    return /** @type {HTMLInputElement | null} */ (document.querySelector("#avatars input:checked"))?.value ?? DEMO;
  }

  /** The one that is picked; null for the demo face. @returns {LibraryAvatar | null} */
  get avatar() {
    return this.tiles.get(this.picked)?.avatar ?? null;
  }

  /** Picture of the one that is picked. */
  get poster() {
    return this.picked === DEMO ? POSTER : this.tiles.get(this.picked)?.poster || PLACEHOLDER;
  }

  /** Shows the caller's avatars, a page of them at a time. @param {string} [after] */
  async load(after) {
    try {
      const { avatars, next } = await this.client.avatars(after);
      this.loaded = true;
      this.next = next;
      for (const avatar of avatars) this.show(avatar);
    } catch (error) {
      this.showError(error);
    }
    $("load-avatars").hidden = this.loaded;
    $("more-avatars").hidden = this.next === null;
  }

  /** A new one is shown first, and picked. @param {LibraryAvatar} avatar */
  add(avatar) {
    this.show(avatar, true);
    this.pick(avatar.avatar_id);
  }

  /** @param {string} id */
  pick(id) {
    const radio = /** @type {HTMLInputElement | null} */ (document.querySelector(`#avatars input[value="${CSS.escape(id)}"]`));
    if (radio) radio.checked = true;
    this.#picked();
  }

  /** An avatar as it is now. @param {LibraryAvatar} avatar @param {boolean} [first] where it is new: before the others */
  show(avatar, first = false) {
    const known = this.tiles.get(avatar.avatar_id);
    const tile = known ?? { avatar, label: emptyTile(avatar.avatar_id), poster: "", ending: new AbortController() };
    if (!known) {
      this.tiles.set(avatar.avatar_id, tile);
      if (first) $("demo-tile").after(tile.label);
      else $("avatars").append(tile.label);
    }
    const was = known?.avatar.state;
    tile.avatar = avatar;
    this.#draw(tile);
    if (avatar.state === "preparing" && was !== "preparing") void this.#follow(tile);
    if (avatar.state === "ready" && was !== "ready") void this.#loadPoster(tile);
    if (this.picked === avatar.avatar_id) this.onPick();
  }

  /** It was deleted. @param {string} id */
  remove(id) {
    const tile = this.tiles.get(id);
    if (!tile) return;
    const wasPicked = this.picked === id;
    tile.ending.abort();
    URL.revokeObjectURL(tile.poster);
    tile.label.remove();
    this.tiles.delete(id);
    if (wasPicked) this.pick(DEMO);
  }

  /** The page's language is another one. */
  translate() {
    for (const tile of this.tiles.values()) this.#draw(tile);
  }

  #picked() {
    this.onPick();
  }

  /** @param {Tile} tile */
  #draw({ avatar, label }) {
    const { name, state, error } = avatar;
    setText(/** @type {Element} */ (label.querySelector(".tile-name")), name);
    setText(/** @type {Element} */ (label.querySelector(".tile-state")), stateText(avatar));
    label.dataset.state = state;
    label.title = error ? explained(error.code, error.detail) : name;
    const bar = /** @type {HTMLProgressElement} */ (label.querySelector("progress"));
    bar.hidden = state !== "preparing";
    bar.value = avatar.progress;
  }

  /** Shows how far a preparation is, and announces its end. @param {Tile} tile */
  async #follow(tile) {
    const { signal } = tile.ending;
    const { avatar_id, name } = tile.avatar;
    try {
      const { state, error } = await this.client.prepared(avatar_id, { signal, onProgress: (now) => signal.aborted || this.show(now) });
      setText($("gallery-status"), state === "ready" ? t("gallery.is_ready", { name }) : t("gallery.has_failed", { name, reason: reasonOf(error) }));
    } catch (error) {
      if (!signal.aborted) this.showError(error);
    }
  }

  /** @param {Tile} tile */
  async #loadPoster(tile) {
    const { signal } = tile.ending;
    const picture = await this.client.poster(tile.avatar.avatar_id, signal).catch(() => null); // the placeholder stays
    if (!picture || signal.aborted) return;
    URL.revokeObjectURL(tile.poster);
    tile.poster = URL.createObjectURL(picture);
    /** @type {HTMLImageElement} */ (tile.label.querySelector("img")).src = tile.poster;
    if (this.picked === tile.avatar.avatar_id) this.onPick();
  }
}

/** @param {LibraryAvatar["error"]} error */
const reasonOf = (error) => (error ? explained(error.code, error.detail) : "");

/** @param {LibraryAvatar} avatar */
export function stateText({ state, progress, report }) {
  if (state === "preparing") return t("gallery.preparing", { percent: Math.round(100 * progress) });
  if (state === "failed") return t("gallery.failed");
  return report?.warnings.length ? t("gallery.warnings", { count: report.warnings.length }) : t("gallery.ready");
}

/** @param {string} id @returns {HTMLLabelElement} */
function emptyTile(id) {
  const label = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "avatar", value: id });
  const picture = Object.assign(document.createElement("img"), { src: PLACEHOLDER, alt: "" });
  const bar = Object.assign(document.createElement("progress"), { max: 1, value: 0 });
  bar.setAttribute("aria-hidden", "true"); // the state says it
  label.className = "tile";
  label.append(radio, picture, make("span", "", "tile-name"), make("span", "", "tile-state"), bar);
  return label;
}
