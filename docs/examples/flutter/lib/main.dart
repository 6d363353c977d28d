/// An avatar that speaks the text that is typed.
///
///     flutter run --dart-define=ORCHESTRATOR_URL=https://avatars.example --dart-define=API_KEY=…
///
/// A key in an app is a key for everybody who has the app: in production let your server start sessions and pass the answer to the app.
library;

import 'package:flutter/material.dart';
import 'package:flutter_webrtc/flutter_webrtc.dart' show RTCVideoView, RTCVideoViewObjectFit;

import 'avatar.dart';
import 'conversation.dart';
import 'orchestrator.dart';

const url = String.fromEnvironment('ORCHESTRATOR_URL', defaultValue: 'http://127.0.0.1:8080');
const apiKey = String.fromEnvironment('API_KEY');
const rtmpUrl = String.fromEnvironment('RTMP_URL');

/// `--dart-define=CONVERSATION=true`: the avatar listens and answers instead of saying what is typed.
const talks = bool.fromEnvironment('CONVERSATION');

void main() => runApp(const MaterialApp(home: AvatarScreen()));

class AvatarScreen extends StatefulWidget {
  const AvatarScreen({super.key});

  @override
  State<AvatarScreen> createState() => _AvatarScreenState();
}

class _AvatarScreenState extends State<AvatarScreen> {
  final avatar = Avatar(Orchestrator(url, apiKey));
  final conversation = talks ? Conversation() : null;
  final text = TextEditingController(text: 'Hello. My lips move with the words you hear.');

  static const _labels = {
    AvatarState.off: 'Off',
    AvatarState.starting: 'Starting …',
    AvatarState.ready: 'Listening',
    AvatarState.speaking: 'Speaking',
    AvatarState.recovering: 'One moment …',
    AvatarState.draining: 'Ending',
    AvatarState.stopped: 'Stopped',
    AvatarState.failed: 'Failed',
  };

  bool get _live => switch (avatar.state) {
        AvatarState.ready || AvatarState.speaking || AvatarState.recovering => true,
        _ => false,
      };

  Future<void> _try(Future<void> Function() action) async {
    try {
      await action();
    } catch (error) {
      if (!mounted) return;
      ScaffoldMessenger.of(context).showSnackBar(SnackBar(content: Text('$error')));
    }
  }

  @override
  void dispose() {
    avatar.dispose();
    conversation?.dispose();
    text.dispose();
    super.dispose();
  }

  @override
  Widget build(BuildContext context) => ListenableBuilder(
        listenable: avatar,
        builder: (context, _) => Scaffold(
          appBar: AppBar(title: Text(_labels[avatar.state]!)),
          body: Column(children: [
            Expanded(child: _video()),
            if (conversation case final talk?) Expanded(child: _Words(talk)),
            if (avatar.publisher == 'rtmp') const _Hint('The video is published by RTMP now. It returns here by itself.'),
            if (avatar.problem case final problem?) _Hint(problem),
            Padding(padding: const EdgeInsets.all(12), child: TextField(controller: text, maxLines: 3, minLines: 1)),
            _buttons(),
          ]),
        ),
      );

  /// The poster until the first frame and while the avatar is away, with the avatar above it.
  Widget _video() => Stack(fit: StackFit.expand, children: [
        Image.network('$url/poster.jpg', fit: BoxFit.contain),
        if (avatar.hasVideo)
          RTCVideoView(avatar.renderer, objectFit: RTCVideoViewObjectFit.RTCVideoViewObjectFitContain),
      ]);

  Widget _buttons() => OverflowBar(alignment: MainAxisAlignment.center, spacing: 8, children: [
        if (!_live)
          FilledButton(
            onPressed: avatar.state == AvatarState.starting
                ? null
                : () => _try(() => avatar.start(room: 'flutter', avatarId: 'demo', rtmpUrl: rtmpUrl.isEmpty ? null : rtmpUrl, conversation: conversation)),
            child: const Text('Start'),
          ),
        if (_live) ...[
          FilledButton(
            onPressed: () => _try(() => conversation?.send(text.text) ?? avatar.speak(text.text)),
            child: Text(talks ? 'Send' : 'Speak'),
          ),
          if (conversation case final talk?)
            ListenableBuilder(
              listenable: talk,
              builder: (context, _) => OutlinedButton(
                onPressed: () => _try(() => talk.listen(!talk.listening)),
                child: Text(talk.listening ? 'Mute' : 'Talk'),
              ),
            ),
          OutlinedButton(onPressed: () => _try(avatar.interrupt), child: const Text('Interrupt')),
          TextButton(onPressed: () => _try(avatar.stop), child: const Text('Stop')),
        ],
      ]);
}

/// Both sides' words, the newest at the bottom.
class _Words extends StatelessWidget {
  const _Words(this.conversation);

  final Conversation conversation;

  @override
  Widget build(BuildContext context) => ListenableBuilder(
        listenable: conversation,
        builder: (context, _) => ListView(reverse: true, padding: const EdgeInsets.all(12), children: [
          for (final line in conversation.lines.reversed)
            Text(
              '${line.mine ? 'You' : 'Avatar'}: ${line.text}',
              textAlign: line.mine ? TextAlign.right : TextAlign.left,
            ),
        ]),
      );
}

class _Hint extends StatelessWidget {
  const _Hint(this.text);

  final String text;

  @override
  Widget build(BuildContext context) => Padding(
        padding: const EdgeInsets.symmetric(horizontal: 12, vertical: 4),
        child: Text(text, style: TextStyle(color: Theme.of(context).colorScheme.error)),
      );
}
