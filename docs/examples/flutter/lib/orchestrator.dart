/// A client of the orchestrator's HTTP API, with the calls that an app needs. Field names are those of docs/protocol.md.
library;

import 'dart:convert';
import 'dart:math';

import 'package:http/http.dart' as http;

/// An answer that is not 2xx. `code` is stable, `detail` is a sentence for the user.
class Problem implements Exception {
  Problem(this.status, this.code, this.detail, {this.retryAfter});

  final int status;
  final String code;
  final String detail;
  final Duration? retryAfter;

  @override
  String toString() => '$detail ($code)';
}

/// The answer of `POST /session/start`, which is all that joining needs.
class StartedSession {
  StartedSession.fromJson(Map<String, dynamic> json)
      : sessionId = json['session_id'] as String,
        room = json['room'] as String,
        livekitUrl = json['livekit_url'] as String,
        viewerToken = json['viewer_token'] as String,
        avatarIdentity = json['avatar_identity'] as String,
        audioUrl = json['audio_url'] as String,
        width = json['width'] as int,
        height = json['height'] as int;

  final String sessionId;
  final String room;
  final String livekitUrl;
  final String viewerToken;
  final String avatarIdentity;
  final String audioUrl;
  final int width;
  final int height;
}

/// Calls the orchestrator. Every method throws [Problem], or what `http` throws when there is no answer.
class Orchestrator {
  Orchestrator(this.baseUrl, this.apiKey);

  final String baseUrl;
  final String apiKey;
  final _http = http.Client();

  /// An avatar joins `room`; both its tracks are published when this returns. One source is needed.
  Future<StartedSession> start({
    required String room,
    String? avatarId,
    String? idleVideoUrl,
    String? framesZipUrl,
    String? rtmpUrl,
    Map<String, Object>? conversation,
  }) async {
    final answer = await _call('POST', '/session/start', {
      'room': room,
      if (avatarId != null) 'avatar_id': avatarId,
      if (idleVideoUrl != null) 'idle_video_url': idleVideoUrl,
      if (framesZipUrl != null) 'frames_zip_url': framesZipUrl,
      if (rtmpUrl != null) 'rtmp_url': rtmpUrl,
      if (conversation != null) 'conversation': conversation,
    });
    return StartedSession.fromJson(answer);
  }

  /// Speaks a text after what is being spoken; returns the number of its segment.
  Future<int> speak(String sessionId, String text, {String? voice}) async {
    final answer = await _call('POST', '/session/$sessionId/speak', {
      'text': text,
      if (voice != null) 'voice': voice,
    });
    return answer['segment'] as int;
  }

  /// Silences the avatar at once; returns the seconds of speech that were dropped.
  Future<double> interrupt(String sessionId) async {
    final answer = await _call('POST', '/session/$sessionId/interrupt');
    return (answer['dropped_s'] as num).toDouble();
  }

  /// Ends a session in any state. Idempotent.
  Future<void> stop(String sessionId) => _call('POST', '/session/$sessionId/stop');

  /// The session's state: `ready`, `speaking`, `recovering`, `stopped` …
  Future<String> state(String sessionId) async {
    final answer = await _call('GET', '/session/$sessionId');
    return answer['state'] as String;
  }

  void close() => _http.close();

  Future<Map<String, dynamic>> _call(String method, String path, [Map<String, Object>? body]) async {
    final request = http.Request(method, Uri.parse('$baseUrl$path'))
      ..headers['Authorization'] = 'Bearer $apiKey';
    if (path == '/session/start') request.headers['Idempotency-Key'] = _nonce();
    if (body != null) {
      request.headers['Content-Type'] = 'application/json';
      request.body = jsonEncode(body);
    }
    final answer = await http.Response.fromStream(await _http.send(request));
    final json = _object(answer.bodyBytes);
    if (answer.statusCode >= 200 && answer.statusCode < 300) return json;
    final seconds = int.tryParse(answer.headers['retry-after'] ?? '');
    throw Problem(
      answer.statusCode,
      json['code'] as String? ?? 'http_${answer.statusCode}',
      json['detail'] as String? ?? 'The server answered ${answer.statusCode}.',
      retryAfter: seconds == null ? null : Duration(seconds: seconds),
    );
  }

  static Map<String, dynamic> _object(List<int> body) {
    try {
      return jsonDecode(utf8.decode(body)) as Map<String, dynamic>;
    } catch (_) {
      return const {};
    }
  }

  static String _nonce() {
    final random = Random.secure();
    return List.generate(16, (_) => random.nextInt(256).toRadixString(16).padLeft(2, '0')).join();
  }
}
