/** What this client uses of livekit-client, for type checkers: the vendored file is minified and has no types of its own. */

export interface Participant {
  readonly identity: string;
  readonly attributes: Readonly<Record<string, string>>;
}

export interface RemoteTrack {
  readonly kind: string;
  readonly mediaStreamTrack: MediaStreamTrack;
  attach(element: HTMLMediaElement): HTMLMediaElement;
  detach(): HTMLMediaElement[];
  getRTCStatsReport(): Promise<RTCStatsReport | undefined>;
}

export interface RoomEvents {
  trackSubscribed: (track: RemoteTrack, publication: unknown, participant: Participant) => void;
  trackUnsubscribed: (track: RemoteTrack, publication: unknown, participant: Participant) => void;
  participantAttributesChanged: (changed: Record<string, string>, participant: Participant) => void;
  participantConnected: (participant: Participant) => void;
  participantDisconnected: (participant: Participant) => void;
  audioPlaybackChanged: (playing: boolean) => void;
  reconnecting: () => void;
  signalReconnecting: () => void;
  reconnected: () => void;
  disconnected: (reason?: number) => void;
}

export class Room {
  constructor(options?: { adaptiveStream?: boolean; dynacast?: boolean; disconnectOnPageLeave?: boolean });
  readonly remoteParticipants: ReadonlyMap<string, Participant>;
  readonly canPlaybackAudio: boolean;
  connect(url: string, token: string, options?: { autoSubscribe?: boolean; maxRetries?: number }): Promise<void>;
  disconnect(): Promise<void>;
  startAudio(): Promise<void>;
  on<Name extends keyof RoomEvents>(event: Name, listener: RoomEvents[Name]): this;
}

export const RoomEvent: {
  readonly TrackSubscribed: "trackSubscribed";
  readonly TrackUnsubscribed: "trackUnsubscribed";
  readonly ParticipantAttributesChanged: "participantAttributesChanged";
  readonly ParticipantConnected: "participantConnected";
  readonly ParticipantDisconnected: "participantDisconnected";
  readonly AudioPlaybackStatusChanged: "audioPlaybackChanged";
  readonly Reconnecting: "reconnecting";
  readonly SignalReconnecting: "signalReconnecting";
  readonly Reconnected: "reconnected";
  readonly Disconnected: "disconnected";
};

export const DisconnectReason: {
  readonly DUPLICATE_IDENTITY: number;
  readonly SERVER_SHUTDOWN: number;
  readonly PARTICIPANT_REMOVED: number;
  readonly ROOM_DELETED: number;
  readonly JOIN_FAILURE: number;
};

export const Track: { readonly Kind: { readonly Audio: "audio"; readonly Video: "video" } };

export function setLogLevel(level: string): void;
