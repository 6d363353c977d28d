/**
 * Clips of one avatar beside `idle`: those that it has, and a form to add another one.
 *
 * @module avatar-clips
 */

import { $, make, setText } from "./elements.js";
import { showIn } from "./problem-view.js";
import { t } from "./strings.js";

/** @typedef {import("./avatar-client.js").LibraryAvatar} LibraryAvatar */

const NAME = /^[a-z0-9][a-z0-9_-]{0,31}$/;

export class AvatarClips {
  /**
   * @param {import("./avatar-client.js").AvatarClient} client
   * @param {(avatar: LibraryAvatar) => void} onChanged
   */
  constructor(client, onChanged) {
    this.client = client;
    this.onChanged = onChanged;
    /** The one that is shown. @type {LibraryAvatar | null} */
    this.avatar = null;
    /** Ends what is being sent. @type {AbortController | null} */
    this.sending = null;
    $("clip-add").addEventListener("click", () => void this.#add());
    $("clip-name").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // it would save the settings
      void this.#add();
    });
  }

  /** An avatar, or the same one as it is now. @param {LibraryAvatar} avatar */
  show(avatar) {
    this.avatar = avatar;
    const clips = avatar.clips.filter(({ name }) => name !== "idle");
    $("clip-list").replaceChildren(...clips.map((clip) => this.#line(clip)));
    $("clip-none").hidden = clips.length > 0;
    this.#showButtons();
  }

  /** Another avatar is shown, or none: what was being sent is of no use. */
  close() {
    this.sending?.abort();
    this.avatar = null;
    $("clip-name").value = "";
    $("clip-file").value = "";
    setText($("clip-status"), "");
    showIn($("clip-problem"), null);
  }

  /** @param {{name: string, frames: number | null}} clip */
  #line({ name, frames }) {
    const line = make("li", "");
    const remove = make("button", t("clips.remove"), "quiet");
    remove.setAttribute("type", "button");
    remove.setAttribute("aria-label", t("clips.remove_named", { name }));
    remove.addEventListener("click", () => void this.#remove(name));
    line.append(make("span", frames === null ? t("clips.preparing", { name }) : t("clips.frames", { name, frames })), remove);
    return line;
  }

  async #add() {
    const name = $("clip-name").value.trim();
    const [file] = $("clip-file").files;
    if (!NAME.test(name)) return this.#refuse("clip-name", t("clips.no_name"));
    if (!file) return this.#refuse("clip-file", t("clips.no_file"));
    await this.#change(async (avatar, signal) => {
      const onProgress = (/** @type {number} */ part) => setText($("clip-status"), part < 1 ? t("add.uploading", { name: file.name, percent: Math.round(100 * part) }) : t("clips.reading"));
      const changed = await this.client.addClip(avatar.avatar_id, name, file, { onProgress, signal });
      $("clip-name").value = "";
      $("clip-file").value = "";
      return changed;
    }, t("clips.added", { name }));
  }

  /** @param {string} name */
  async #remove(name) {
    await this.#change(async (avatar) => {
      await this.client.deleteClip(avatar.avatar_id, name);
      return this.client.avatar(avatar.avatar_id);
    }, t("clips.removed", { name }));
    $("clip-name").focus(); // the button that was pressed is gone
  }

  /** @param {(avatar: LibraryAvatar, signal: AbortSignal) => Promise<LibraryAvatar>} call returns the avatar as it is afterwards @param {string} done */
  async #change(call, done) {
    const { avatar } = this;
    if (!avatar || this.sending) return;
    const sending = (this.sending = new AbortController());
    showIn($("clip-problem"), null);
    this.#showButtons();
    try {
      this.onChanged(await call(avatar, sending.signal));
      setText($("clip-status"), done);
    } catch (error) {
      if (sending.signal.aborted) return;
      setText($("clip-status"), "");
      showIn($("clip-problem"), error);
    } finally {
      this.sending = null;
      this.#showButtons();
    }
  }

  /** @param {string} field @param {string} why */
  #refuse(field, why) {
    setText($("clip-status"), why);
    $(field).focus();
  }

  #showButtons() {
    const ready = this.avatar?.state === "ready" && !this.sending;
    $("clip-add").disabled = !ready;
    for (const button of $("clip-list").querySelectorAll("button")) button.disabled = !ready;
  }
}
