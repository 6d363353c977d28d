"""Prometheus instruments of the orchestrator, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class Metrics:
    """Every instrument, under names that begin with `avatar_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._add_sessions(self.registry)
        self._add_audio(self.registry)
        self._add_moves(self.registry)
        self._add_voices(self.registry)
        self._add_conversations(self.registry)
        self._add_surface(self.registry)
        self._add_films(self.registry)
        self._add_renders(self.registry)

    def _add_films(self, registry: CollectorRegistry) -> None:
        self.films = Gauge("avatar_recordings", "Sessions that are recorded", registry=registry)
        self.film_bytes = Counter("avatar_recording_bytes", "Bytes of films fetched from agents", registry=registry)
        self.film_lost = Counter(
            "avatar_recording_lost",
            "Media missing in finished films, by kind (picture, sound block: the encoder was late; fragment: not fetched)",
            ["kind"],
            registry=registry,
        )
        self.film_store_errors = Counter(
            "avatar_recording_store_errors", "Failed calls of the film store", registry=registry
        )

    def _add_sessions(self, registry: CollectorRegistry) -> None:
        self.sessions = Gauge("avatar_orchestrator_sessions", "Sessions by state", ["state"], registry=registry)
        self.starts = Counter(
            "avatar_session_starts", "Starts by outcome (ok or error code)", ["outcome"], registry=registry
        )
        self.start_seconds = Histogram(
            "avatar_session_start_seconds", "Time a successful start took", registry=registry, buckets=_SECONDS
        )
        self.ends = Counter("avatar_session_ends", "Sessions that ended, by reason", ["reason"], registry=registry)

    def _add_renders(self, registry: CollectorRegistry) -> None:
        self.renders_open = Gauge("avatar_renders_open", "Renders that have not ended", registry=registry)
        self.renders = Counter("avatar_renders_ended", "Renders that ended, by state", ["state"], registry=registry)

    def _add_audio(self, registry: CollectorRegistry) -> None:
        self.audio_bytes = Counter("avatar_audio_received_bytes", "Bytes of PCM received on /audio", registry=registry)
        self.audio_connections = Gauge("avatar_audio_connections", "Open /audio connections", registry=registry)
        self.audio_errors = Counter(
            "avatar_audio_errors", "/audio connections ended by an error", ["code"], registry=registry
        )
        self.backlog_seconds = Gauge(
            "avatar_audio_backlog_seconds", "Seconds of PCM not yet played, all sessions", registry=registry
        )
        self.open_segments = Gauge("avatar_open_segments", "Segments that are open, all sessions", registry=registry)
        self.clears_waiting = Gauge(
            "avatar_clears_waiting", "Clears not yet acknowledged by agents, all sessions", registry=registry
        )
        self.speech_ahead = Gauge(
            "avatar_speech_ahead_seconds",
            "Seconds of synthesized speech not yet played, all sessions",
            registry=registry,
        )
        self.speech_notes = Gauge(
            "avatar_speech_notes", "Phonemes and words buffered with speech, all sessions", registry=registry
        )
        self.speech_notes_dropped = Counter(
            "avatar_speech_notes_dropped", "Phonemes and words dropped because the buffer was full", registry=registry
        )
        self.segments = Counter("avatar_segments_finished", "Segments that ended", ["interrupted"], registry=registry)
        self.events_dropped = Counter(
            "avatar_audio_events_dropped", "Events dropped because a reader's queue was full", registry=registry
        )
        self.link_connects = Counter("avatar_link_connects", "Connections made to agents' /audio", registry=registry)
        self.link_drops = Counter("avatar_link_drops", "Connections to agents' /audio that broke", registry=registry)

    def _add_moves(self, registry: CollectorRegistry) -> None:
        self.moves = Counter(
            "avatar_session_moves", "Sessions that lost their agent, by cause", ["cause"], registry=registry
        )
        self.move_seconds = Histogram(
            "avatar_session_move_seconds",
            "Time from the loss of an agent to the start at another one",
            registry=registry,
            buckets=_SECONDS,
        )
        self.interrupt_seconds = Histogram(
            "avatar_interrupt_seconds",
            "Time from sending a clear to the agent's acknowledgement",
            registry=registry,
            buckets=_SECONDS,
        )
        self.speech = Counter("avatar_speech_requests", "Texts to speak, by outcome", ["outcome"], registry=registry)
        self.speech_waiting = Gauge("avatar_speech_waiting", "Texts queued or being synthesized", registry=registry)
        self.speech_first_seconds = Histogram(
            "avatar_speech_first_seconds",
            "Time from the first word of a text to its first audio",
            registry=registry,
            buckets=_SECONDS,
        )

    def _add_voices(self, registry: CollectorRegistry) -> None:
        self.voices_loaded = Gauge("avatar_voices_loaded", "Models of embedded voices in memory", registry=registry)
        self.voice_loads = Gauge(
            "avatar_voice_loads", "Models of embedded voices loaded since their worker started", registry=registry
        )
        self.voice_lines = Gauge(
            "avatar_voice_lines", "Rooms in which the orchestrator publishes its own voice", registry=registry
        )
        self.voice_stand_ins = Counter(
            "avatar_voice_stand_ins", "Lost agents that the orchestrator's own voice replaced", registry=registry
        )
        self.voice_losses = Counter("avatar_voice_worker_losses", "Voice workers that were lost", registry=registry)

    def _add_conversations(self, registry: CollectorRegistry) -> None:
        self.conversations = Gauge("avatar_conversations", "Conversations of running sessions", registry=registry)
        self.conversation_turns = Counter(
            "avatar_conversation_turns", "User turns that were answered", registry=registry
        )
        self.conversation_wait_seconds = Histogram(
            "avatar_conversation_wait_seconds",
            "Latency of an answer, by part: heard (end of turn and recognition), thought (model), spoke (voice)",
            ["part"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.conversation_microphone_late = Counter(
            "avatar_conversation_microphone_late",
            "Times a conversation began to drop microphone audio because its worker was three seconds behind",
            registry=registry,
        )
        self.conversation_worker_losses = Counter(
            "avatar_conversation_worker_losses", "Conversation workers that were lost", registry=registry
        )
        self.conversation_provider_errors = Counter(
            "avatar_conversation_provider_errors",
            "Failed calls of conversations to their models, by part",
            ["part"],
            registry=registry,
        )

    def _add_surface(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "avatar_http_requests", "HTTP requests", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "avatar_http_request_seconds", "Duration of HTTP requests", ["route"], registry=registry, buckets=_SECONDS
        )
        self.events = Counter("avatar_events", "Events of sessions, by type", ["type"], registry=registry)
        self.webhooks = Counter(
            "avatar_webhooks", "Webhooks by outcome (delivered, failed, dropped)", ["outcome"], registry=registry
        )
        self.webhooks_pending = Gauge("avatar_webhooks_pending", "Webhooks queued", registry=registry)
        self.tool_calls = Counter(
            "avatar_tool_calls", "Function calls of conversations, by outcome", ["outcome"], registry=registry
        )
        self.tool_call_seconds = Histogram(
            "avatar_tool_call_seconds",
            "Duration of function calls of conversations",
            registry=registry,
            buckets=_SECONDS,
        )
        self.keys = Gauge("avatar_keys", "Valid API keys", registry=registry)
        self.keys_file_errors = Counter(
            "avatar_keys_file_errors", "Reloads of the keys file that failed", registry=registry
        )
        self.audit_dropped = Counter(
            "avatar_audit_dropped", "Audit log lines that could not be written", registry=registry
        )
        self.event_streams = Gauge("avatar_event_streams", "Open streams of /session/{id}/events", registry=registry)
        self.event_overruns = Counter(
            "avatar_event_overruns", "Event streams closed because their reader was too slow", registry=registry
        )
        self.loop_failures = Counter(
            "avatar_loop_failures",
            "Background loops that failed and were restarted, by loop",
            ["loop"],
            registry=registry,
        )
        self.store_errors = Counter("avatar_store_errors", "Failed calls of the session store", registry=registry)
        self.store_unreadable = Gauge(
            "avatar_store_unreadable", "Stored sessions that cannot be read", registry=registry
        )
        self.store_skipped = Counter(
            "avatar_store_skipped",
            "Session records that could not be encoded and were not written",
            registry=registry,
        )
        self.adoptions = Counter(
            "avatar_adoptions",
            "Takeovers of sessions of another or an earlier process, by outcome",
            ["outcome"],
            registry=registry,
        )
        self.reaped = Counter(
            "avatar_reaped",
            "Leftovers of dead processes removed (avatars in rooms, ingresses), by kind",
            ["kind"],
            registry=registry,
        )
