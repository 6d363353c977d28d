/**
 * The buttons that record the avatar, or its room where the deployment can, and those that download the film, while it grows
 * and after the end, and delete it.
 *
 * @module recording
 */

import { ApiError } from "./api-error.js";
import { $, setText } from "./elements.js";
import { t } from "./strings.js";

const LOOK_MS = 2000;

export class Recording {
  /**
   * @param {object} parts
   * @param {import("./avatar-client.js").AvatarClient} parts.client
   * @param {(error: unknown) => void} parts.showError
   */
  constructor({ client, showError }) {
    this.client = client;
    this.showError = showError;
    /** Of the session whose film is shown; it may have ended. @type {string | null} */
    this.id = null;
    this.live = false;
    this.busy = false;
    /** Delete was pressed once. */
    this.armed = false;
    /** @type {import("./avatar-client.js").RecordingStatus | null} */
    this.reported = null;
    $("record").addEventListener("click", () => void this.toggle());
    $("record-room").addEventListener("click", () => void this.toggle("room"));
    $("film").addEventListener("click", () => void this.download());
    $("film-delete").addEventListener("click", () => void this.delete());
    setInterval(() => void this.#look(), LOOK_MS);
    this.#show();
  }

  /** A session begins. @param {string} id */
  open(id) {
    this.id = id;
    this.live = true;
    this.armed = false;
    this.reported = null;
    this.#show();
    void this.#look(true); // what can be recorded, and whether it is already
  }

  /** It is over; its film can still be downloaded. */
  async close() {
    const recorded = this.reported?.state === "recording";
    this.live = false;
    this.#show();
    if (recorded) await this.#look(true);
  }

  /** Begins to record, or ends that. @param {"avatar" | "room"} [of] what is recorded */
  async toggle(of) {
    const { id } = this;
    if (id === null || this.busy) return;
    const state = this.reported?.state === "recording" ? "stopped" : "recording";
    await this.#ask(id, () => this.client.record(id, state, undefined, state === "recording" ? of : undefined));
  }

  /** Saves the film as far as it has come. */
  async download() {
    const { id } = this;
    if (id === null || this.busy) return;
    await this.#ask(id, async () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await this.client.film(id));
      link.download = `${id}.mp4`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      return this.client.recording(id);
    });
  }

  /** Deletes the film when it is pressed twice in a row. One that grows begins again, empty. */
  async delete() {
    const { id } = this;
    if (id === null || this.busy) return;
    if (!this.armed) {
      this.armed = true;
      this.#show();
      return;
    }
    await this.#ask(id, async () => {
      await this.client.deleteRecording(id);
      return this.client.recording(id);
    });
  }

  /** @param {string} id @param {() => Promise<import("./avatar-client.js").RecordingStatus>} call */
  async #ask(id, call) {
    this.busy = true;
    this.armed = false;
    this.#show();
    try {
      this.#take(id, await call());
    } catch (error) {
      this.showError(error);
    } finally {
      this.busy = false;
      this.#show();
    }
  }

  /** @param {boolean} [changed] the session has begun or ended since it was looked at last */
  async #look(changed = false) {
    const { id } = this;
    if (id === null || this.busy || !(changed || this.#changes())) return;
    const reported = await this.client.recording(id).catch(() => null); // the next look reports
    if (reported && !this.busy) this.#take(id, reported);
    this.#show();
  }

  /** Whether the film grows, or is one of a room that is not written yet. */
  #changes() {
    const { state, of, bytes, error } = this.reported ?? {};
    return state === "recording" || (state === "stopped" && of === "room" && !bytes && !error);
  }

  /** @param {string} id @param {import("./avatar-client.js").RecordingStatus} reported */
  #take(id, reported) {
    if (this.id !== id) return;
    if (reported.error && this.reported?.error !== reported.error) {
      this.showError(new ApiError(reported.error, { code: "recording_unavailable" }));
    }
    this.reported = reported;
  }

  #show() {
    const recording = this.reported?.state === "recording";
    $("record").setAttribute("aria-pressed", String(recording));
    $("record").disabled = this.busy;
    setText($("record"), t(recording && this.live ? "record.stop" : "record.start"));
    $("record-room").hidden = recording || !this.reported?.choices.includes("room");
    $("record-room").disabled = this.busy;
    const { bytes = 0, seconds = 0 } = this.reported ?? {};
    $("film").hidden = !bytes;
    $("film").disabled = this.busy;
    $("film-delete").hidden = !bytes;
    $("film-delete").disabled = this.busy;
    setText($("film-delete"), t(this.armed ? "record.really" : "record.delete"));
    setText($("film"), t("record.download", { seconds: seconds.toFixed(0), size: (bytes / 1e6).toFixed(1) }));
  }
}
