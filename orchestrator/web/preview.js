/**
 * How an avatar looks with settings, before anybody sees it live: a film of five seconds, or one frame of a shorter one. Both are
 * renders, made with what live sessions leave of the machine.
 *
 * @module preview
 */

import { ApiError } from "./avatar-client.js";
import { $, setText } from "./elements.js";
import { showIn } from "./problem-view.js";
import { t } from "./strings.js";

/** Where in the word for one frame the mouth is open: a part of its length. */
const OPEN_AT = 0.45;

export class Preview {
  /** @param {import("./avatar-client.js").AvatarClient} client */
  constructor(client) {
    this.client = client;
    /** Ends the preview that is being made. @type {AbortController | null} */
    this.making = null;
    this.url = "";
  }

  /**
   * Makes a preview and shows it; one that is being made is given up.
   * @param {"frame" | "speech"} kind
   * @param {import("./avatar-client.js").RenderOrder} order without its text
   */
  async make(kind, order) {
    this.making?.abort();
    const making = new AbortController();
    this.making = making;
    showIn($("preview-problem"), null);
    this.#showMaking(0);
    try {
      const text = kind === "frame" ? t("preview.vowel") : $("preview-text").value.trim() || t("preview.sentence");
      const film = await this.#made({ ...order, text }, making.signal);
      if (!making.signal.aborted) await this.#show(kind, film);
    } catch (error) {
      if (!making.signal.aborted) this.#fail(error);
    }
    if (this.making === making) this.making = null;
  }

  /** Gives up what is being made, and shows nothing. */
  clear() {
    this.making?.abort();
    this.making = null;
    $("preview-film").pause();
    $("preview-film").removeAttribute("src");
    URL.revokeObjectURL(this.url);
    this.url = "";
    for (const id of ["preview-film", "preview-progress"]) $(id).hidden = true;
    setText($("preview-status"), "");
    showIn($("preview-problem"), null);
  }

  /** @param {import("./avatar-client.js").RenderOrder} order @param {AbortSignal} signal @returns {Promise<Blob>} */
  async #made(order, signal) {
    const { render_id } = await this.client.render(order, { signal });
    const cancel = () => void this.client.cancelRender(render_id).catch(() => {}); // else it is made in vain
    signal.addEventListener("abort", cancel);
    const { state, error } = await this.client.rendered(render_id, { signal, onProgress: ({ progress }) => signal.aborted || this.#showMaking(progress) });
    signal.removeEventListener("abort", cancel);
    if (state !== "done") throw new ApiError(error?.detail ?? t("preview.cancelled"), { code: error?.code ?? "cancelled" });
    return this.client.renderedFilm(render_id, signal, order.format === "webm" ? "webm" : "mp4");
  }

  /** @param {number} progress */
  #showMaking(progress) {
    $("preview-progress").hidden = false;
    $("preview-progress").value = progress;
    setText($("preview-status"), t("preview.making"));
  }

  /** @param {"frame" | "speech"} kind @param {Blob} film */
  async #show(kind, film) {
    const video = $("preview-film");
    URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(film);
    video.hidden = false;
    video.controls = kind === "speech";
    video.dataset.kind = kind;
    video.src = this.url;
    await new Promise((resolve, reject) => {
      video.onloadeddata = resolve;
      video.onerror = () => reject(new ApiError(t("preview.unplayable"), { code: "film_unplayable" }));
    });
    video.scrollIntoView({ block: "nearest" });
    $("preview-progress").hidden = true;
    setText($("preview-status"), t(kind === "frame" ? "preview.frame_done" : "preview.speech_done"));
    if (kind === "frame") video.currentTime = OPEN_AT * video.duration;
    else await video.play().catch(() => {}); // where the browser blocks it, there is a button for it
  }

  /** @param {unknown} error */
  #fail(error) {
    $("preview-progress").hidden = true;
    setText($("preview-status"), "");
    showIn($("preview-problem"), error);
  }
}
