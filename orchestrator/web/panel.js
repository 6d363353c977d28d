/**
 * The panel "Live details": diagnosis, counts of the pipeline's stages, timing, session, and events.
 *
 * @module panel
 */

import { $, make, setText } from "./elements.js";
import { warningItems } from "./problem-view.js";
import { explained, language, t, tOr } from "./strings.js";

const EVENTS_KEPT = 8;
const SKEW_SECONDS = 120;
const SKEW_RANGE_MS = 60;
const NONE = "–";

/** Diagnoses without a fault. */
const HEALTHY = new Set(["ok", "no_audio"]);

/** @param {number|null|undefined} value @param {string} unit @param {number} [digits] */
export const amount = (value, unit, digits = 0) => (value === null || value === undefined ? NONE : `${value.toFixed(digits)} ${unit}`);

const signed = new Intl.NumberFormat("en", { maximumFractionDigits: 0, signDisplay: "exceptZero" });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

export class Panel {
  constructor() {
    /** @type {Map<string, {count: number, at: number}>} */
    this.counts = new Map();
    /** @type {number[]} */
    this.skews = [];
  }

  /** Empties it for a new session. */
  reset() {
    for (const id of ["funnel", "events", "warnings", "session-facts", "timing-facts"]) $(id).replaceChildren();
    this.counts.clear();
    this.skews = [];
    $("skew").hidden = true;
    $("warnings").hidden = true;
    this.diagnose(null);
  }

  /** @param {Record<string, string | number | null | undefined>} facts */
  session(facts) {
    this.#facts($("session-facts"), facts);
  }

  /** @param {Record<string, string | number | null | undefined>} facts */
  timing(facts) {
    this.#facts($("timing-facts"), facts);
  }

  /** @param {import("./avatar-client.js").Coded[]} warnings of the avatar's report */
  warnings(warnings) {
    $("warnings").hidden = !warnings.length;
    $("warnings").replaceChildren(...warningItems(warnings));
  }

  /** @param {import("./avatar-client.js").Coded | null | undefined} diagnosis @param {boolean} [translated] its message is in the page's language */
  diagnose(diagnosis, translated = false) {
    const text = !diagnosis ? t("panel.waiting") : translated ? diagnosis.message : explained(diagnosis.code, diagnosis.message);
    setText($("diagnosis-text"), text);
    setText($("diagnosis-code"), diagnosis?.code ?? "");
    $("diagnosis-code").hidden = !diagnosis;
    $("diagnosis").dataset.tone = !diagnosis ? "none" : diagnosis.code === "ok" ? "good" : HEALTHY.has(diagnosis.code) ? "none" : "warn";
  }

  /** @param {import("./avatar-client.js").FunnelStage[]} stages */
  funnel(stages) {
    const now = performance.now();
    const compact = new Intl.NumberFormat(language(), { notation: "compact", maximumFractionDigits: 1 });
    const rows = stages.map(({ stage, count, last_error }) => {
      const before = this.counts.get(stage);
      const perSecond = before ? (1000 * (count - before.count)) / (now - before.at) : 0;
      this.counts.set(stage, { count, at: now });
      const row = document.createElement("li");
      const moving = perSecond >= 0.5;
      row.append(make("span", tOr(`funnel.${stage}`, stage)));
      row.append(make("span", compact.format(count)));
      row.append(make("span", moving ? `${compact.format(Math.round(perSecond))}/s` : t("panel.at_rest"), moving ? "rate flowing" : "rate"));
      if (last_error) row.append(make("span", last_error, "fault"));
      return row;
    });
    $("funnel").replaceChildren(...rows);
  }

  /** @param {number|null} skewMs positive when audio is ahead of video; called once a second */
  skew(skewMs) {
    if (skewMs === null) return;
    this.skews = [...this.skews, skewMs].slice(-SKEW_SECONDS);
    const y = (/** @type {number} */ ms) => 20 - (20 * Math.max(-SKEW_RANGE_MS, Math.min(SKEW_RANGE_MS, ms))) / SKEW_RANGE_MS;
    const first = SKEW_SECONDS - this.skews.length;
    $("skew-line").setAttribute("points", this.skews.map((ms, k) => `${first + k},${y(ms).toFixed(1)}`).join(" "));
    $("skew").hidden = this.skews.length < 3;
  }

  /** @param {string} text */
  event(text) {
    const item = document.createElement("li");
    item.append(make("time", clock.format(new Date())), make("span", text));
    $("events").prepend(item);
    while ($("events").children.length > EVENTS_KEPT) $("events").lastElementChild.remove();
  }

  /** @param {HTMLElement} list @param {Record<string, string | number | null | undefined>} facts */
  #facts(list, facts) {
    const terms = Object.entries(facts);
    if (list.children.length !== terms.length) {
      const tiles = terms.map(() => {
        const tile = document.createElement("div");
        tile.append(make("dt", ""), make("dd", NONE));
        return tile;
      });
      list.replaceChildren(...tiles);
    }
    for (const [k, [term, value]] of terms.entries()) {
      setText(/** @type {Element} */ (list.children[k].firstElementChild), term);
      const text = value === null || value === undefined || value === "" ? NONE : String(value);
      setText(/** @type {Element} */ (list.children[k].lastElementChild), text);
    }
  }
}

/** @param {number|null} skewMs */
export const skewText = (skewMs) => (skewMs === null ? NONE : `${signed.format(skewMs).replace("-", "−")} ms`);
