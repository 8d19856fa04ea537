"""GIF decoder built from TensorFlow graph operations.

The input is the contents of a GIF as a scalar string tensor; the output is the pixels of its first frame.
TensorFlow's operation supports neither a canvas nor transparency. A frame that needs one of them raises
InvalidArgumentError here; it is converted where Python code can run, see `trainer.data.reading`.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.data.byte_ops import choose, peek, size_of

_MOST_BLOCKS = 10_000
_EXTENSION, _CONTROL = 0x21, 0xF9

_State = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
# position, whether it is inside the blocks of an extension, whether the frame has a transparent colour


def decode_gif(data: tf.Tensor) -> tf.Tensor:
    """Return the first frame of a GIF (string scalar) as RGB uint8 [H, W, 3].

    Raises InvalidArgumentError, also if the frame is transparent or does not cover the canvas.
    """
    frame, is_transparent = _first_frame(data)
    # Left, top, width and height of the frame; width and height of the canvas.
    place, canvas = peek(data, frame + 1, 8), peek(data, 6, 4)
    covers = tf.reduce_all(place == tf.concat([tf.zeros(4, tf.int64), canvas], 0))
    plain = tf.debugging.Assert(covers & ~is_transparent, ["GIF with transparency or a partial frame"])
    with tf.control_dependencies([plain]):
        image = tf.io.decode_image(tf.identity(data), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _first_frame(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the position of the first image descriptor, and whether it is transparent: bool scalar.

    Only extensions can precede it (GIF89a specification, appendix A).
    """
    flags, size = peek(data, 10, 1)[0], size_of(data)
    table = choose(flags & 0x80 > 0, 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags & 7), 0)

    def is_before(position: tf.Tensor, inside: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (position < size) & (inside | (peek(data, position, 1)[0] == _EXTENSION))

    def advance(position: tf.Tensor, inside: tf.Tensor, is_transparent: tf.Tensor) -> _State:
        head = peek(data, position, 4)
        is_control = ~inside & (head[1] == _CONTROL)
        following = position + tf.where(inside, 1 + head[0], 2)
        return following, ~inside | (head[0] > 0), tf.where(is_control, head[3] & 1 > 0, is_transparent)

    position, _, is_transparent = tf.while_loop(
        is_before,
        advance,
        (13 + table, tf.constant(False), tf.constant(False)),
        maximum_iterations=_MOST_BLOCKS,
        parallel_iterations=1,
    )
    return position, is_transparent
