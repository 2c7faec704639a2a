"""The structs and callbacks of include/rf.h, field for field: the fields are told there."""

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64
from typing import Final


class OpenOptions(ctypes.Structure):
    """`rf_open_options`."""

    _fields_ = (
        ("size", c_uint32),
        ("num_threads", c_int32),
        ("precision", c_char_p),
        ("dialect", c_char_p),
        ("engine", c_char_p),
        ("verify", c_char_p),
        ("library", c_char_p),
        ("allow_unverified", c_int32),
        ("warn", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
        ("provider", c_char_p),
        ("provider_library", c_char_p),
        ("no_spinning", c_int32),
        ("backend", c_char_p),
        ("backend_library", c_char_p),
    )


class Prompt(ctypes.Structure):
    """`rf_prompt`."""

    _fields_ = (("text", c_char_p), ("ids", POINTER(c_int64)), ("num_ids", c_size_t))


class DrawOptions(ctypes.Structure):
    """`rf_draw_options`."""

    _fields_ = (
        ("size", c_uint32),
        ("height", c_int32),
        ("width", c_int32),
        ("num_steps", c_int32),
        ("top_k", c_int32),
        ("window", c_int32),
        ("seed", c_uint64),
        ("shift", c_double),
        ("rep_guidance_scale", c_double),
        ("pix_guidance_scale", c_double),
        ("temperature", c_double),
        ("times", POINTER(c_double)),
        ("num_times", c_size_t),
        ("guided", POINTER(c_double)),
        ("plan", c_char_p),
        ("forced_rep_ids", POINTER(c_int64)),
    )


class DrawEvent(ctypes.Structure):
    """`rf_event`."""

    _fields_ = (
        ("size", c_uint32),
        ("kind", c_int32),
        ("step", c_int32),
        ("num_steps", c_int32),
        ("num_pictures", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("rep_ids", POINTER(c_int64)),
        ("logits", POINTER(c_float)),
        ("num_logits", c_size_t),
        ("t", c_float),
        ("t_next", c_float),
        ("x_next", POINTER(c_float)),
        ("x_pred", POINTER(c_float)),
    )


class Size(ctypes.Structure):
    """`rf_size`."""

    _fields_ = tuple((name, c_int32) for name in ("height", "width", "num_rep_tokens", "num_steps", "window"))


class Pictures(ctypes.Structure):
    """`rf_pictures`."""

    _fields_ = (
        ("size", c_uint32),
        ("rgb", POINTER(c_uint8)),
        ("rgb_room", c_size_t),
        ("pixels", POINTER(c_float)),
        ("pixels_room", c_size_t),
        ("rep_ids", POINTER(c_int64)),
        ("rep_ids_room", c_size_t),
    )


class AskOptions(ctypes.Structure):
    """`rf_ask_options`."""

    _fields_ = (
        ("size", c_uint32),
        ("max_tokens", c_int32),
        ("top_k", c_int32),
        ("forget", c_int32),
        ("seed", c_uint64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("repetition_penalty", c_double),
        ("ids", POINTER(c_int64)),
        ("num_ids", c_size_t),
        ("forced_ids", POINTER(c_int64)),
        ("num_forced_ids", c_size_t),
    )


class Word(ctypes.Structure):
    """`rf_word`."""

    _fields_ = (
        ("size", c_uint32),
        ("step", c_int32),
        ("max_tokens", c_int32),
        ("token_id", c_int64),
        ("text", c_char_p),
        ("logits", POINTER(c_float)),
        ("num_logits", c_size_t),
    )


class Answer(ctypes.Structure):
    """`rf_answer`."""

    _fields_ = (
        ("size", c_uint32),
        ("text", ctypes.c_void_p),
        ("text_room", c_size_t),
        ("ids", POINTER(c_int64)),
        ("ids_room", c_size_t),
        ("is_cut_off", c_int32),
    )


DRAW_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(DrawEvent), ctypes.c_void_p)
ASK_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(Word), ctypes.c_void_p)
