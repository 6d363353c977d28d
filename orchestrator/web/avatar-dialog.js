/**
 * The dialog of one avatar of the library: its report, its name, its settings with a preview of them, its clips, and its end.
 *
 * @module avatar-dialog
 */

import { AvatarClips } from "./avatar-clips.js";
import { $, make, onClosed, setText } from "./elements.js";
import { stateText } from "./gallery.js";
import { Preview } from "./preview.js";
import { showIn, warningItems } from "./problem-view.js";
import { explained, t } from "./strings.js";

/** @typedef {import("./avatar-client.js").LibraryAvatar} LibraryAvatar */
/** @typedef {import("./avatar-client.js").AvatarSettings} AvatarSettings */

/** Settings whose field is empty for the default. */
const OPTIONAL = new Set(["bbox_shift", "voice"]);
const NUMBERS = new Set(["bbox_shift", "mouth_gain", "av_offset_ms", "sharpen"]);
/** Settings as the dialog has them: its fields have these names. */
const SETTINGS = ["mouth_gain", "av_offset_ms", "sharpen", "smoothing", "blend", "mood", "bbox_shift", "voice"];

export class AvatarDialog {
  /**
   * @param {object} parts
   * @param {import("./avatar-client.js").AvatarClient} parts.client
   * @param {(avatar: LibraryAvatar) => void} parts.onChanged
   * @param {(avatar: LibraryAvatar) => void} parts.onDeleted
   * @param {(select: HTMLSelectElement) => Promise<void>} parts.loadVoices fills a list of voices
   */
  constructor({ client, onChanged, onDeleted, loadVoices }) {
    this.client = client;
    this.onChanged = onChanged;
    this.onDeleted = onDeleted;
    this.loadVoices = loadVoices;
    this.preview = new Preview(client);
    this.clips = new AvatarClips(client, onChanged);
    /** The one that is shown. @type {LibraryAvatar | null} */
    this.avatar = null;
    this.busy = false;
    /** Delete was pressed once. */
    this.armed = false;
    $("tune-close").addEventListener("click", () => $("tune-dialog").close());
    onClosed($("tune-dialog"), () => this.#forget());
    $("tune-form").addEventListener("input", () => this.#edited());
    $("tune-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      void this.#save();
    });
    $("tune-defaults").addEventListener("click", () => this.#fill(null));
    $("tune-delete").addEventListener("click", () => void this.#delete());
    $("preview-frame").addEventListener("click", () => void this.#preview("frame"));
    $("preview-speech").addEventListener("click", () => void this.#preview("speech"));
  }

  /** @param {LibraryAvatar} avatar */
  async open(avatar) {
    this.#forget();
    this.avatar = avatar;
    showIn($("tune-problem"), null);
    this.#arm(false);
    $("tune-name").value = avatar.name;
    $("preview-text").value = t("preview.sentence");
    this.#fill(avatar.settings);
    this.show(avatar);
    $("tune-dialog").showModal();
    $("tune-dialog").scrollTop = 0;
    const { voice } = $("tune-form").elements;
    await this.loadVoices(voice);
    if (this.avatar?.avatar_id === avatar.avatar_id) setOption(voice, voice.value);
  }

  /** An avatar as it is now; nothing where another one is shown. @param {LibraryAvatar} avatar */
  show(avatar) {
    if (this.avatar?.avatar_id !== avatar.avatar_id) return;
    this.avatar = avatar;
    setText($("tune-title"), avatar.name);
    setText($("tune-state"), avatar.error ? explained(avatar.error.code, avatar.error.detail) : stateText(avatar));
    $("tune-progress").hidden = avatar.state !== "preparing";
    $("tune-progress").value = avatar.progress;
    this.#showReport(avatar);
    this.clips.show(avatar);
    this.#showButtons();
  }

  /** @param {LibraryAvatar} avatar */
  #showReport({ report }) {
    $("tune-report").hidden = report === null;
    if (!report) return;
    const { width, height, frames, face_px: face, still } = report;
    setText($("tune-facts"), t(still ? "tune.facts_still" : "tune.facts", { width, height, frames, face: face }));
    $("tune-warnings").replaceChildren(...(report.warnings.length ? warningItems(report.warnings) : [make("li", t("tune.no_warnings"), "fine")]));
  }

  /** @param {AvatarSettings | null} settings null: the defaults */
  #fill(settings) {
    const { elements } = $("tune-form");
    for (const name of SETTINGS) {
      const field = elements[name];
      const value = String((settings ? settings[name] : field.dataset.default) ?? "");
      if (field.tagName === "SELECT") setOption(field, value);
      else field.value = value;
    }
    fillBackground(String(settings?.background ?? "keep"));
    this.#edited();
  }

  #edited() {
    this.#arm(false);
    for (const kind of ["colour", "image"]) $(`${kind}-field`).hidden = $("background").value !== kind;
    $("background-image").required = $("background").value === "image";
    for (const output of $("tune-form").querySelectorAll("output")) setText(output, Number($("tune-form").elements[output.dataset.of].value).toFixed(Number(output.dataset.digits)));
    this.#showButtons();
  }

  #showButtons() {
    const usable = this.avatar?.state !== "failed";
    for (const id of ["preview-frame", "preview-speech"]) $(id).disabled = this.busy || !usable;
    for (const id of ["tune-save", "tune-delete", "tune-defaults"]) $(id).disabled = this.busy;
  }

  /** What the fields say. @returns {AvatarSettings} */
  get settings() {
    const { elements } = $("tune-form");
    const named = SETTINGS.map((name) => {
      const { value } = elements[name];
      if (value === "" && OPTIONAL.has(name)) return [name, null];
      return [name, NUMBERS.has(name) ? Number(value) : value];
    });
    return { ...Object.fromEntries(named), background: chosenBackground() };
  }

  /** @param {"frame" | "speech"} kind */
  async #preview(kind) {
    if (!this.avatar || !$("tune-form").reportValidity()) return;
    const { voice, ...mouth } = this.settings;
    const order = { avatar_id: this.avatar.avatar_id, avatar_settings: mouth, ...(voice && { voice: String(voice) }), ...(mouth.background === "transparent" && { format: /** @type {const} */ ("webm") }) };
    await this.preview.make(kind, order);
  }

  async #save() {
    const { avatar } = this;
    const name = $("tune-name").value.trim();
    if (!avatar || this.busy) return;
    await this.#ask(async () => {
      const changed = await this.client.changeAvatar(avatar.avatar_id, { settings: this.settings, ...(name && { name }) });
      this.onChanged(changed);
      setText($("tune-status"), t("tune.saved"));
    });
  }

  async #delete() {
    const { avatar } = this;
    if (!avatar || this.busy) return;
    if (!this.armed) return this.#arm(true);
    await this.#ask(async () => {
      await this.client.deleteAvatar(avatar.avatar_id);
      this.onDeleted(avatar);
      $("tune-dialog").close();
    });
    this.#arm(false);
  }

  /** @param {boolean} armed */
  #arm(armed) {
    this.armed = armed;
    setText($("tune-delete"), t(armed ? "tune.really" : "tune.delete"));
    setText($("tune-status"), armed ? t("tune.sure") : "");
  }

  /** @param {() => Promise<void>} call */
  async #ask(call) {
    this.busy = true;
    showIn($("tune-problem"), null);
    this.#showButtons();
    try {
      await call();
    } catch (error) {
      showIn($("tune-problem"), error);
    } finally {
      this.busy = false;
      this.#showButtons();
    }
  }

  #forget() {
    this.avatar = null;
    this.preview.clear();
    this.clips.close();
  }
}

/** Chooses an option of a list; one that is not listed (a provider's own voice) is added. @param {HTMLSelectElement} list @param {string} value */
function setOption(list, value) {
  list.querySelector("option[data-unlisted]")?.remove();
  if (![...list.options].some((option) => option.value === value)) {
    const added = new Option(value, value);
    added.dataset.unlisted = "";
    list.add(added);
  }
  list.value = value;
}

/** The setting `background` as the fields say it. */
function chosenBackground() {
  const kind = $("background").value;
  return kind === "colour" ? $("background-colour").value : kind === "image" ? `image:${$("background-image").value.trim()}` : kind;
}

/** Puts the setting into the fields. @param {string} background */
function fillBackground(background) {
  const colour = background.startsWith("#");
  const image = background.startsWith("image:");
  $("background").value = colour ? "colour" : image ? "image" : background;
  if (colour) $("background-colour").value = background;
  $("background-image").value = image ? background.slice("image:".length) : "";
}
