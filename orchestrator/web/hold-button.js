/**
 * A button that acts while it is held down by the pointer or the space bar. Enter, and a click by an assistive technology, toggle it.
 *
 * @module hold-button
 */

/**
 * @param {HTMLElement} button
 * @param {{press: () => void, release: () => void, isPressed: () => boolean}} actions
 * @param {AbortSignal} signal takes it off
 */
export function holdButton(button, { press, release, isPressed }, signal) {
  const toggle = () => (isPressed() ? release() : press());
  /** @param {string} type @param {(event: any) => void} handler */
  const on = (type, handler) => button.addEventListener(type, handler, { signal });
  on("pointerdown", (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    press();
  });
  for (const type of ["pointerup", "pointercancel", "blur"]) on(type, release);
  on("contextmenu", (event) => event.preventDefault());
  on("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    if (event.repeat) return;
    if (event.key === " ") press();
    else toggle();
  });
  on("keyup", (event) => {
    if (event.key !== " ") return;
    event.preventDefault();
    release();
  });
  on("click", (event) => event.detail === 0 && toggle());
}
