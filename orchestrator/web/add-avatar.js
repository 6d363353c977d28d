/**
 * The dialog that adds an avatar to the library: a file, an address, or a photo by the camera.
 *
 * @module add-avatar
 */

import { ApiError } from "./avatar-client.js";
import { Camera } from "./camera.js";
import { $, onClosed, setText } from "./elements.js";
import { showIn } from "./problem-view.js";
import { t } from "./strings.js";

export class AddAvatar {
  /**
   * @param {object} parts
   * @param {import("./avatar-client.js").AvatarClient} parts.client
   * @param {(avatar: import("./avatar-client.js").LibraryAvatar) => void} parts.onAdded
   */
  constructor({ client, onAdded }) {
    this.client = client;
    this.onAdded = onAdded;
    this.camera = new Camera($("camera"));
    /** @type {File | null} */
    this.photo = null;
    this.photoUrl = "";
    /** Ends the upload that is under way. @type {AbortController | null} */
    this.sending = null;
    $("add-avatar").addEventListener("click", () => this.open());
    $("add-cancel").addEventListener("click", () => $("add-dialog").close());
    onClosed($("add-dialog"), () => this.#forget());
    $("add-form").addEventListener("change", () => this.#show());
    $("take-photo").addEventListener("click", () => void this.#takePhoto());
    $("add-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      void this.#add();
    });
  }

  open() {
    this.#forget();
    showIn($("add-problem"), null);
    $("add-dialog").showModal();
    this.#show();
  }

  /** @returns {"upload" | "url" | "camera"} */
  get way() {
    return $("add-form").elements.source.value;
  }

  /** Shows the fields of the chosen way, and turns the camera on for its own. */
  #show() {
    for (const way of ["upload", "url", "camera"]) $(`source-${way}`).hidden = this.way !== way;
    if (this.way !== "camera") this.#forgetPhoto();
    else if (!this.camera.stream && !this.photo) void this.#openCamera();
    this.#showButtons();
  }

  #showButtons() {
    const busy = this.sending !== null;
    $("add-go").disabled = busy || (this.way === "camera" && !this.photo);
    $("take-photo").disabled = busy || (!this.camera.stream && !this.photo);
    setText($("take-photo"), t(this.photo ? "add.again" : "add.take"));
    $("photo").hidden = !this.photo;
    $("camera").hidden = this.photo !== null;
    $("add-progress").hidden = !busy;
    for (const field of $("add-form").elements) if (field.id !== "add-go" && field.id !== "take-photo" && field.id !== "add-cancel") field.disabled = busy;
  }

  async #openCamera() {
    showIn($("add-problem"), null);
    try {
      await this.camera.open();
    } catch (error) {
      if (this.way === "camera") showIn($("add-problem"), error);
    }
    this.#showButtons();
  }

  async #takePhoto() {
    if (this.photo) {
      this.#forgetPhoto();
      await this.#openCamera();
      return;
    }
    try {
      this.photo = await this.camera.photo();
      this.photoUrl = URL.createObjectURL(this.photo);
      $("photo").src = this.photoUrl;
      this.camera.close();
      setText($("add-status"), t("add.taken"));
    } catch (error) {
      showIn($("add-problem"), error);
    }
    this.#showButtons();
    if (this.photo) $("add-go").focus();
  }

  #forgetPhoto() {
    this.camera.close();
    URL.revokeObjectURL(this.photoUrl);
    this.photo = null;
    this.photoUrl = "";
  }

  async #add() {
    if (this.sending) return;
    const sending = new AbortController();
    this.sending = sending;
    showIn($("add-problem"), null);
    this.#showButtons();
    try {
      const name = $("add-name").value.trim();
      const added = this.way === "url" ? await this.#byAddress(name) : await this.#byFile(name, sending.signal);
      this.onAdded(added);
      if (this.sending === sending) $("add-dialog").close();
    } catch (error) {
      if (this.sending !== sending) return; // the dialog was closed
      this.#ended();
      showIn($("add-problem"), error);
      if (error instanceof ApiError && (error.field === "url" || error.field === "file")) $(error.field).focus();
    }
  }

  /** @param {string} name */
  #byAddress(name) {
    const url = $("url").value.trim();
    if (!/^https?:\/\/\S+$/.test(url)) throw new ApiError(t("add.no_address"), { code: "avatar_missing", field: "url" });
    setText($("add-status"), t("add.asking"));
    return this.client.addAvatar({ url, ...(name && { name }) });
  }

  /** @param {string} name @param {AbortSignal} signal */
  async #byFile(name, signal) {
    const file = this.way === "camera" ? this.photo : $("file").files[0];
    if (!file) throw new ApiError(t("add.no_file"), { code: "avatar_missing", field: "file" });
    const shown = name || file.name;
    $("add-progress").value = 0;
    const showProgress = (/** @type {number} */ fraction) => {
      $("add-progress").value = fraction;
      const words = { name: shown, percent: Math.round(100 * fraction) };
      setText($("add-status"), fraction < 1 ? t("add.uploading", words) : t("add.uploaded", { name: shown }));
    };
    const ending = /\.\w+$/.exec(file.name)?.[0] ?? "";
    return this.client.upload(file, showProgress, { name: name ? `${name}${ending}` : file.name, signal });
  }

  #ended() {
    this.sending = null;
    setText($("add-status"), "");
    this.#showButtons();
  }

  #forget() {
    this.sending?.abort();
    this.#forgetPhoto();
    this.#ended();
    $("add-form").reset();
  }
}
