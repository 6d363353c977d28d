import type { TalkingAvatar, TalkingAvatarEvents } from "./talking-avatar.js";

export * from "./talking-avatar.js";

declare module "./talking-avatar.js" {
  interface TalkingAvatar {
    addEventListener<Name extends keyof TalkingAvatarEvents>(
      type: Name,
      listener: (this: TalkingAvatar, event: CustomEvent<TalkingAvatarEvents[Name]>) => void,
      options?: boolean | AddEventListenerOptions,
    ): void;
    addEventListener(type: string, listener: EventListenerOrEventListenerObject, options?: boolean | AddEventListenerOptions): void;
  }
}

declare global {
  interface HTMLElementTagNameMap {
    "talking-avatar": TalkingAvatar;
  }
}
