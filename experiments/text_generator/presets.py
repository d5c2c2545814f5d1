"""Named sets of options; the README says what each takes and reaches."""

from collections.abc import Mapping

from experiments.text_generator.config import (
    Architecture,
    Optimization,
    PresetName,
    Text,
    Train,
)

_STREAMS = Text(
    vocabulary="learned",
    validation=0.1,
    seq_length=64,
    carry_state=True,
    forget=0.01,
    batch_size=32,
)

PRESETS: Mapping[PresetName, Train] = {
    # The tutorial's program: nothing held out, windows without a state from one to the next.
    "tutorial": Train(),
    # The most for five minutes of two cores.
    "fast": Train(
        preset="fast",
        text=_STREAMS,
        model=Architecture(layers=1, hidden_size=512, dropout=0.3, recurrent_dropout=0.08),
        optimization=Optimization(
            optimizer="adamw",
            learning_rate=2e-2,
            schedule="cosine",
            warmup=50,
            clip_norm=1.0,
            weight_decay=0.05,
        ),
        steps=2450,
        checkpoint_every=1,
        sample_temperature=0.7,
    ),
    # The most for an hour of two cores.
    "quality": Train(
        preset="quality",
        text=_STREAMS,
        model=Architecture(layers=2, hidden_size=512, dropout=0.4, recurrent_dropout=0.15),
        optimization=Optimization(
            optimizer="adamw",
            learning_rate=3e-3,
            schedule="cosine",
            warmup=200,
            clip_norm=1.0,
            weight_decay=0.1,
        ),
        steps=14_700,
        checkpoint_every=1,
        sample_temperature=0.7,
    ),
    # A simple network that reads ten characters and guesses the eleventh.
    "next_character": Train(
        preset="next_character",
        text=Text(vocabulary="lines", seq_length=10, stride=1, predict="last", batch_size=128),
        model=Architecture(cell="simple", layers=1, hidden_size=128),
        optimization=Optimization(optimizer="rmsprop"),
        epochs=25,
        steps_per_dispatch=200,
    ),
}
