/**
 * What is chosen before the start, the avatar, the room and the engine; the avatar also while a session runs.
 *
 * @module chooser
 */

import { AddAvatar } from "./add-avatar.js";
import { AvatarDialog } from "./avatar-dialog.js";
import { $, setText } from "./elements.js";
import { Gallery, stateText } from "./gallery.js";
import { explained, t } from "./strings.js";

export class Chooser {
  /**
   * @param {object} parts
   * @param {import("./avatar-client.js").AvatarClient} parts.client
   * @param {import("./panel.js").Panel} parts.panel
   * @param {(text: string) => void} parts.showStatus
   * @param {(error: unknown) => void} parts.showError
   * @param {(select: HTMLSelectElement) => Promise<void>} parts.loadVoices
   */
  constructor({ client, panel, showStatus, showError, loadVoices }) {
    this.panel = panel;
    this.showStatus = showStatus;
    this.showError = showError;
    /** Of the session that runs. @type {import("./avatar.js").Avatar | null} */
    this.running = null;
    this.changing = false;
    this.gallery = new Gallery({ client, showError, onPick: () => this.#show() });
    this.adding = new AddAvatar({ client, onAdded: (avatar) => this.gallery.add(avatar) });
    this.tuning = new AvatarDialog({
      client,
      loadVoices,
      onChanged: (avatar) => this.gallery.show(avatar),
      onDeleted: ({ avatar_id, name }) => {
        this.gallery.remove(avatar_id);
        setText($("gallery-status"), t("gallery.deleted", { name }));
      },
    });
    const query = new URLSearchParams(location.search);
    $("room").value = query.get("room") ?? `avatar-${crypto.randomUUID().slice(0, 8)}`;
    if ([...$("engine").options].some((option) => option.value === query.get("engine"))) $("engine").value = query.get("engine");
    $("chooser").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      $("start-talk").click();
    });
    $("tune").addEventListener("click", () => this.gallery.avatar && void this.tuning.open(this.gallery.avatar));
    $("change").addEventListener("click", () => $("change-dialog").showModal());
    $("show-avatar").addEventListener("click", () => void this.#change());
  }

  /** The start request that the form describes. @returns {import("./avatar-client.js").StartRequest} */
  request() {
    return { room: $("room").value.trim() || "avatar", ...($("engine").value && { engine: $("engine").value }), avatar_id: this.gallery.picked };
  }

  /** A session runs from now on, whose avatar may be changed; null: none does. @param {import("./avatar.js").Avatar | null} running */
  attach(running) {
    this.running = running;
    $("change-dialog").close();
    $("change").hidden = running === null;
    if (running) $("change-title").after($("gallery"));
    else $("chooser").prepend($("gallery"));
    this.#show();
  }

  /** The page's language is another one. */
  translate() {
    this.gallery.translate();
    this.#show();
  }

  /** Shows the one that is picked, on the stage and below the tiles. */
  #show() {
    const { avatar, poster } = this.gallery;
    $("poster").src = poster;
    $("tune").hidden = avatar === null;
    $("show-avatar").hidden = this.running === null;
    $("show-avatar").disabled = this.changing || avatar?.state === "failed";
    $("picked").hidden = avatar === null && this.running === null;
    const sentence = avatar?.error ? explained(avatar.error.code, avatar.error.detail) : avatar ? stateText(avatar) : "";
    setText($("picked-text"), avatar ? t("gallery.picked", { name: avatar.name, state: sentence }) : "");
    $("picked").dataset.state = avatar?.state ?? "ready";
    if (avatar) this.tuning.show(avatar);
  }

  /** Shows the one that is picked in the session that runs. */
  async #change() {
    const { running } = this;
    if (!running || this.changing) return;
    const name = this.gallery.avatar?.name ?? t("chooser.demo");
    this.changing = true;
    this.#show();
    $("change-dialog").close(); // the status is behind it
    this.showStatus(t("status.changing", { name }));
    try {
      const { avatar } = await running.show({ avatar_id: this.gallery.picked });
      if (this.running !== running) return;
      this.panel.warnings(avatar.warnings);
      this.showStatus(t("status.changed", { name }));
    } catch (error) {
      if (this.running !== running) return;
      this.showStatus(t("status.not_changed"));
      this.showError(error);
    } finally {
      this.changing = false;
      this.#show();
    }
  }
}
