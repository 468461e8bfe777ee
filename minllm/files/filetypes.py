"""Recognising files that aren't UTF-8 text, by their first bytes."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import Path

from minllm.errors import UserError

SAMPLE = 1 << 16  # bytes that are examined
# shares and number of NULs; ordinary text may have a few
MANY_NULS, FEW_NULS, SO_FEW = 0.1, 0.01, 8
COMMON = frozenset(" \n\r\t,.;:!?'\"()，。、：；！？「」")
"""Characters common in every text, but rare when UTF-16 is decoded in the wrong byte order."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is a prefix of it
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
EXTRACT = "Extract the text first"
SIGNATURES: list[tuple[bytes, str, str]] = [
    # (regular expression for the first bytes, description, what to do with such a file)
    (rb"\x1f\x8b", "compressed by gzip", "Decompress it: gunzip -c {path} > {text}"),
    (rb"\xfd7zXZ\x00", "compressed by xz", "Decompress it: xz -dc {path} > {text}"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "compressed by bzip2", "Decompress it: bzip2 -dc {path} > {text}"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd", "Decompress it: zstd -dc {path} > {text}"),
    (rb"\x04\x22\x4d\x18", "compressed by lz4", "Decompress it: lz4 -dc {path} > {text}"),
    (rb"\x1f[\x9d\xa0]", "compressed by compress", "Decompress it: uncompress -c {path} > {text}"),
    (
        rb"PK(\x03\x04|\x05\x06|\x07\x08)",
        "a zip archive, as are .docx, .xlsx, .epub, .npz and PyTorch's .pt files",
        "Extract the text first: unzip {path}",
    ),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", f"{EXTRACT}: 7z x {{path}}"),
    (rb"Rar!\x1a\x07", "a RAR archive", f"{EXTRACT}: unrar x {{path}}"),
    (rb"(?s:.{257})ustar[\x00 ]", "a tar archive", f"{EXTRACT}: tar -xf {{path}}"),
    (rb"%PDF-", "a PDF document", f"{EXTRACT}: pdftotext {{path}} <file>"),
    (
        rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "a document of an older Microsoft Office",
        "Save it as text first.",
    ),
    (rb"\{\\rtf\d", "a document in rich text format (RTF)", "Save it as text first."),
    (
        rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|II\*\x00|MM\x00\*|RIFF(?s:.{4})WEBP",
        "an image",
        "Name a file of text.",
    ),
    (
        rb"OggS\x00|fLaC\x00|ID3[\x02-\x04]|RIFF(?s:.{4})(WAVE|AVI )|\x00{3}(?s:.)ftyp|\x1aE\xdf\xa3",
        "audio or video",
        "Name a file of text.",
    ),
    (rb"PAR1[\x00-\x1f]", "a parquet file", "Give it a name that ends with .parquet."),
    (rb"ARROW1\x00|FEA1\x00", "an Arrow file", "Convert it to .parquet or .jsonl."),
    (rb"\x89HDF\r\n|Obj\x01", "a file of tables (HDF5 or Avro)", "Convert it to .parquet or .jsonl."),
    (rb"SQLite format 3\x00", "an SQLite database", "Export its texts to a .jsonl file."),
    (rb"\x93NUMPY", "a NumPy array", "Name a file of text; token numbers aren't text."),
    (rb"\x80[\x02-\x05]", "a pickled Python object", "Write its texts to a .jsonl file."),
    (rb"(?s:.{5})\x00{3}\{", "a safetensors file", "Name a file of text."),
    (rb"GGUF[\x01-\x09]\x00{3}", "a GGUF model", "Name a file of text."),
    (
        rb"\x7fELF|MZ(?s:.{0,126})\x00\x00\x00|[\xce\xcf]\xfa\xed\xfe|\xca\xfe\xba\xbe|\x00asm",
        "a program",
        "Name a file of text.",
    ),
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "not the text but a Git LFS pointer to it",
        "Fetch the text: git lfs pull",
    ),
]


def refuse_other_kinds(path: Path) -> None:
    """Raise `UserError` if a file's first bytes show that it isn't UTF-8 text.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        sample = file.read(SAMPLE)
    is_as_named = path.suffix == ".parquet" and sample.startswith(b"PAR1")
    if not is_as_named and (kind := other_kind(sample)):
        what, cure = kind
        raise UserError(f"{path} is {what}. {filled(cure, path)}")


def filled(cure: str, path: Path) -> str:
    """Fill a remedy's placeholders with the names of a file and of the text file made from it."""
    is_inside = path.with_suffix("").suffix in (".txt", ".jsonl")  # of notes.txt.gz
    text = path.with_suffix("") if is_inside else path.with_name(f"{path.stem}-text{path.suffix}")
    return cure.format(path=shlex.quote(str(path)), text=shlex.quote(str(text)))


def other_kind(sample: bytes) -> tuple[str, str] | None:
    """Return (description, remedy) of a file that begins with `sample`; None if it may be UTF-8 text."""
    for pattern, what, cure in SIGNATURES:
        if re.match(pattern, sample):
            return what, cure
    if encoding := wide_encoding(sample):
        return f"{encoding} text", f"Convert it: iconv -f {encoding} -t UTF-8 {{path}} > {{text}}"
    return None


def wide_encoding(sample: bytes) -> str | None:
    """Return the name of the UTF-16 or UTF-32 encoding of a sample; None if it has neither."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark) and (encoding == "UTF-16" or decoded(sample, encoding) is not None):
            return encoding
    if b"\0" not in sample:
        return None
    shares = {name: common_share(sample, name) for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")}
    likeliest = max(shares, key=lambda name: shares[name])
    others = [share for name, share in shares.items() if name != likeliest]
    return likeliest if shares[likeliest] > max(0.02, 4 * max(others)) else None


def common_share(sample: bytes, encoding: str) -> float:
    """Return the share of common characters in a sample; 0 if it isn't text in this encoding."""
    text = decoded(sample, encoding)
    if not text or "\0" in text:
        return 0.0
    return sum(character in COMMON for character in text) / len(text)


def decoded(sample: bytes, encoding: str) -> str | None:
    """Decode a sample, whose last character may be cut off; None if it isn't in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return None


def decode(block: bytes, path: Path, start: int) -> str:
    """Decode a file's bytes from `start` on. UserError if they aren't UTF-8, or have many NULs."""
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {start + error.start:,} is 0x{block[error.start]:02x}."
            + filled(
                " If you know its encoding, convert it: iconv -f <encoding> -t UTF-8 {path} > {text}", path
            )
        ) from error
    refuse_nuls(text, f"{path}, from byte {start:,} on")
    return text


def refuse_nuls(text: str, place: str) -> None:
    """Raise `UserError` if a text has too many NULs to be intended; `place` is its location."""
    nuls = text.count("\0")
    if nuls > MANY_NULS * len(text) or (nuls > FEW_NULS * len(text) and nuls >= SO_FEW):
        raise UserError(
            f"{place}: {nuls / len(text):.0%} of the characters are NUL. The text may be in another encoding,"
            " such as UTF-16, or damaged. Convert it to UTF-8, or remove the NULs."
        )
