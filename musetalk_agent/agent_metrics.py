"""Prometheus instruments of the agent; names begin with `avatar_`. One process, one registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

LIP_LATENCY = Histogram(
    "avatar_lip_latency_seconds",
    "Time from receiving a frame's last PCM to publishing the frame",
    buckets=(0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25, 0.3, 0.5, 1.0, 3.0),
    registry=REGISTRY,
)
SESSIONS = Gauge("avatar_sessions", "Sessions held by this agent", registry=REGISTRY)
SESSIONS_MAX = Gauge("avatar_sessions_max", "Most sessions that this agent accepts", registry=REGISTRY)
SESSIONS_LIMIT = Gauge(
    "avatar_sessions_limit",
    "Sessions by each limit (setting, card, processor, memory, pacing); +Inf where it sets none",
    ["limit"],
    registry=REGISTRY,
)
CLOCK_LATE = Gauge(
    "avatar_frame_clock_late_ratio",
    "95th percentile of frame lateness over the last ten seconds, in frame durations",
    registry=REGISTRY,
)
SESSIONS_ENDED = Counter("avatar_sessions_ended_total", "Sessions ended, by outcome", ["outcome"], registry=REGISTRY)
PCM_SAMPLES = Counter("avatar_pcm_samples_total", "PCM samples received", registry=REGISTRY)
FRAMES = Counter("avatar_pictures_total", "Video frames, by outcome", ["kind"], registry=REGISTRY)
UNDERRUNS = Counter("avatar_underruns_total", "Audio underruns: PCM came up to 200 ms too late", registry=REGISTRY)
START_SECONDS = Histogram(
    "avatar_session_start_seconds",
    "Time from the start request to both tracks published",
    buckets=(0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    registry=REGISTRY,
)
ENGINE_QUEUE = Gauge("avatar_engine_queue", "Frames queued for the engine", ["engine"], registry=REGISTRY)
ENGINE_BUSY = Gauge("avatar_engine_busy_seconds", "Seconds the engine was busy", ["engine"], registry=REGISTRY)
PREPARE_SECONDS = Histogram(
    "avatar_prepare_seconds",
    "Time to fetch and prepare an avatar",
    buckets=(0.05, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    registry=REGISTRY,
)
DECODERS_WAITING = Gauge("avatar_decoders_waiting", "Clips queued for a decoder process", registry=REGISTRY)
DECODERS_LOST = Counter(
    "avatar_decoders_lost_total",
    "Decoder processes that ended while decoding a clip, by reason (cpu, time, memory, crash, start)",
    ["reason"],
    registry=REGISTRY,
)
STREAM_FRAMES = Counter(
    "avatar_stream_frames_total", "Frames pushed to stream servers, by sink (rtmp, whip)", ["sink"], registry=REGISTRY
)
STREAM_DROPPED = Counter(
    "avatar_stream_dropped_total",
    "Media too old to be pushed, by sink and kind (picture, sound block)",
    ["sink", "kind"],
    registry=REGISTRY,
)
STREAM_RECONNECTS = Counter(
    "avatar_stream_reconnects_total", "Reconnects to stream servers", ["sink"], registry=REGISTRY
)
STREAM_QUEUE = Gauge(
    "avatar_stream_queue_seconds",
    "Seconds of media queued for stream servers, all sessions",
    ["sink"],
    registry=REGISTRY,
)
PUBLISHER_RUNG = Gauge(
    "avatar_publisher_rung", "Sessions by the transport in use (livekit, whip, rtmp)", ["rung"], registry=REGISTRY
)
PUBLISHER_CHANGES = Counter(
    "avatar_publisher_changes_total",
    "Changes of transport, by the new one (none: nothing could be reached)",
    ["rung"],
    registry=REGISTRY,
)
CAPTIONS = Counter(
    "avatar_captions_total",
    "Pieces of captions, by outcome (sent, dropped)",
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
    "Seconds of a participant's microphone buffered at the agent, sampled twice a second while it is open",
    buckets=(0.05, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0),
    registry=REGISTRY,
)
MICROPHONE_SECONDS = Counter(
    "avatar_microphone_seconds_total",
    "Seconds of microphone audio altered (left_out and stretched: silence, to hold the delay; late: speech dropped)",
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
    "Samples of live sessions judged, by outcome (passed, failed, not_judged: the judge could not work)",
    ["outcome"],
    registry=REGISTRY,
)
JUDGE_FAULTS = Counter(
    "avatar_judge_faults_total",
    "Failed measures of judged samples (docs/reference/judge.md)",
    ["measure"],
    registry=REGISTRY,
)
JUDGE_LAG = Histogram(
    "avatar_judge_lag_seconds",
    "Lag of the lips in judged samples, where it is certain",
    buckets=(-0.12, -0.08, -0.045, -0.02, 0.0, 0.02, 0.045, 0.08, 0.12),
    registry=REGISTRY,
)
JUDGE_CORRELATION = Histogram(
    "avatar_judge_lip_correlation",
    "Correlation of lips and audio in judged samples",
    buckets=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    registry=REGISTRY,
)
MATTES_WAITING = Gauge("avatar_mattes_waiting", "Prepared avatars queued for their matte", registry=REGISTRY)
RENDER_WORKERS = Gauge("avatar_render_workers", "Render worker processes of this agent", registry=REGISTRY)
ADAPTATION_STEP = Gauge(
    "avatar_adaptation_step", "Sessions by step of video quality adaptation", ["step"], registry=REGISTRY
)
FILMS = Gauge("avatar_films", "Films in recording at this agent", registry=REGISTRY)
FILM_DROPPED = Counter(
    "avatar_film_dropped_total",
    "Media dropped because a film's encoder was late, by kind (picture, sound block)",
    ["kind"],
    registry=REGISTRY,
)
FILM_QUEUE = Gauge("avatar_film_queue_seconds", "Seconds of media queued for film encoders", registry=REGISTRY)
FILM_RESTARTS = Counter("avatar_film_restarts_total", "Film encoders that ended and were restarted", registry=REGISTRY)
FILM_LOST = Counter(
    "avatar_film_lost_fragments_total",
    "Fragments of films that no orchestrator fetched within a minute",
    registry=REGISTRY,
)
