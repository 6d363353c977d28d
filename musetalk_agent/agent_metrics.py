"""Prometheus instruments of the agent; names begin with `avatar_`. One process, one registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

LIP_LATENCY = Histogram(
    "avatar_lip_latency_seconds",
    "From the last PCM of a frame to its lips leaving for the room",
    buckets=(0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25, 0.3, 0.5, 1.0, 3.0),
    registry=REGISTRY,
)
SESSIONS = Gauge("avatar_sessions", "Sessions held by this agent", registry=REGISTRY)
SESSIONS_MAX = Gauge("avatar_sessions_max", "Sessions this agent takes", registry=REGISTRY)
SESSIONS_LIMIT = Gauge(
    "avatar_sessions_limit",
    "Sessions by each limit (setting, card, processor, memory, pacing); +Inf where it sets none",
    ["limit"],
    registry=REGISTRY,
)
CLOCK_LATE = Gauge(
    "avatar_frame_clock_late_ratio",
    "How late frames left in the last ten seconds, 95th percentile, by the time of a frame",
    registry=REGISTRY,
)
SESSIONS_ENDED = Counter("avatar_sessions_ended_total", "Sessions ended, by how", ["outcome"], registry=REGISTRY)
PCM_SAMPLES = Counter("avatar_pcm_samples_total", "PCM samples taken", registry=REGISTRY)
FRAMES = Counter("avatar_pictures_total", "Pictures, by what was done with them", ["kind"], registry=REGISTRY)
UNDERRUNS = Counter(
    "avatar_underruns_total", "Times PCM came up to 200 ms after the voice had run dry", registry=REGISTRY
)
START_SECONDS = Histogram(
    "avatar_session_start_seconds",
    "From the request to both tracks published",
    buckets=(0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    registry=REGISTRY,
)
ENGINE_QUEUE = Gauge("avatar_engine_queue", "Pictures that wait for the engine", ["engine"], registry=REGISTRY)
ENGINE_BUSY = Gauge("avatar_engine_busy_seconds", "Seconds the engine has worked", ["engine"], registry=REGISTRY)
PREPARE_SECONDS = Histogram(
    "avatar_prepare_seconds",
    "Fetching and preparing an avatar",
    buckets=(0.05, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    registry=REGISTRY,
)
DECODERS_WAITING = Gauge(
    "avatar_decoders_waiting", "Clips that wait for a process to decode them in", registry=REGISTRY
)
DECODERS_LOST = Counter(
    "avatar_decoders_lost_total",
    "Decoder processes that ended over a clip, by why (cpu, time, memory, crash, start)",
    ["reason"],
    registry=REGISTRY,
)
STREAM_FRAMES = Counter(
    "avatar_stream_frames_total", "Pictures pushed, by sink (rtmp, whip)", ["sink"], registry=REGISTRY
)
STREAM_DROPPED = Counter(
    "avatar_stream_dropped_total",
    "What was too old to be pushed, by sink and kind (picture, sound block)",
    ["sink", "kind"],
    registry=REGISTRY,
)
STREAM_RECONNECTS = Counter("avatar_stream_reconnects_total", "Pushes begun again", ["sink"], registry=REGISTRY)
STREAM_QUEUE = Gauge(
    "avatar_stream_queue_seconds", "Media that wait to be pushed, all sessions", ["sink"], registry=REGISTRY
)
PUBLISHER_RUNG = Gauge(
    "avatar_publisher_rung", "Sessions by the way their media take (livekit, whip, rtmp)", ["rung"], registry=REGISTRY
)
PUBLISHER_CHANGES = Counter(
    "avatar_publisher_changes_total",
    "Changes to another way (none: nothing could be reached)",
    ["rung"],
    registry=REGISTRY,
)
CAPTIONS = Counter(
    "avatar_captions_total",
    "Pieces of captions, by what became of them (sent, dropped)",
    ["outcome"],
    registry=REGISTRY,
)
AGENT_CALLS = Counter(
    "avatar_agent_calls_total",
    "Calls to an agent of livekit-agents, by method and outcome (ok, agent_absent, no_room, overrun, error_CODE, error_sdk)",
    ["method", "outcome"],
    registry=REGISTRY,
)
MICROPHONE_DELAY = Histogram(
    "avatar_microphone_delay_seconds",
    "What waits of a participant's microphone at the agent, looked at twice a second while it is heard",
    buckets=(0.05, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0),
    registry=REGISTRY,
)
MICROPHONE_SECONDS = Counter(
    "avatar_microphone_seconds_total",
    "Seconds of microphones that were not said as they came (left_out and stretched: silence, to hold the delay; late: speech)",
    ["kind"],
    registry=REGISTRY,
)
LOOP_FAILURES = Counter(
    "avatar_loop_failures_total",
    "Failures of background loops, which are restarted, by loop "
    "(probe, microphone, speech-read, speech-tell, speech-watch, admission, renders, judge)",
    ["loop"],
    registry=REGISTRY,
)
JUDGED = Counter(
    "avatar_judged_total",
    "Samples of sessions that the judge looked at, by outcome (passed, failed, not_judged: the judge could not work)",
    ["outcome"],
    registry=REGISTRY,
)
JUDGE_FAULTS = Counter(
    "avatar_judge_faults_total",
    "Measures that a sample did not pass (docs/reference/judge.md)",
    ["measure"],
    registry=REGISTRY,
)
JUDGE_LAG = Histogram(
    "avatar_judge_lag_seconds",
    "How late the lips of a sample were, where it was certain",
    buckets=(-0.12, -0.08, -0.045, -0.02, 0.0, 0.02, 0.045, 0.08, 0.12),
    registry=REGISTRY,
)
JUDGE_CORRELATION = Histogram(
    "avatar_judge_lip_correlation",
    "Correlation of the lips of a sample with its sound",
    buckets=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    registry=REGISTRY,
)
MATTES_WAITING = Gauge("avatar_mattes_waiting", "Prepared avatars whose matte is not made yet", registry=REGISTRY)
RENDER_WORKERS = Gauge("avatar_render_workers", "Processes of this agent that make renders", registry=REGISTRY)
ADAPTATION_STEP = Gauge(
    "avatar_adaptation_step", "Sessions by the step of their adaptation", ["step"], registry=REGISTRY
)
FILMS = Gauge("avatar_films", "Films that are being recorded here", registry=REGISTRY)
FILM_DROPPED = Counter(
    "avatar_film_dropped_total",
    "What the encoder of a film could not take in time, by kind (picture, sound block)",
    ["kind"],
    registry=REGISTRY,
)
FILM_QUEUE = Gauge("avatar_film_queue_seconds", "Media that wait for the encoders of films", registry=REGISTRY)
FILM_RESTARTS = Counter(
    "avatar_film_restarts_total", "Encoders of films that ended and were started again", registry=REGISTRY
)
FILM_LOST = Counter(
    "avatar_film_lost_fragments_total",
    "Fragments of films that no orchestrator fetched within a minute",
    registry=REGISTRY,
)
