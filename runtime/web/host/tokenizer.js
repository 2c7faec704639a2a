/**
 * Texts to token ids and back, with a Hugging Face tokenizer.json of a kind that is read here exactly: WordLevel, and
 * byte-level BPE. What else there is, is refused by name: give ids then. See runtime/text/tokenizer.py.
 */

import { closeWords } from "./close-words.js";
import { RFError, quoted } from "./errors.js";
import { parseJson, plain } from "./json.js";

const MAX_CHARACTERS = 100_000, NAMED = 8, MOST_WORDS = 2000, LONGEST_WORD = 40;
const REMEDY = "Export the bundle again.";
const SIGNS = / |[\t\n,.;:!?"'()]/.source;
const OUTER_SIGNS = new RegExp(`^(?:${SIGNS})+|(?:${SIGNS})+$`, "g");
const BLANK = "[\\p{White_Space}\\x1c-\\x1f]"; // as Python's isspace
const IS_BLANK = new RegExp(`^${BLANK}*$`, "u"), BLANKS = new RegExp(`${BLANK}+`, "u");
const ALNUM = /[\p{L}\p{N}]/u;
const CONTROL = new RegExp(`^(?:\\[(?:(?!${BLANK})[^\\[\\]])+\\]|<(?:(?!${BLANK})[^<>])+>)$`, "u"); // [PAD], <s>, <|end|>
const BYTE = /^<0x[0-9A-F]{2}>$/;

// As the tokenizers library writes these patterns, and in this language: its \s has U+0085 and not U+FEFF.
const LINES = String.raw`[^\r\n\p{L}\p{N}]?\p{L}+`, OTHERS = String.raw` ?[^\s\p{L}\p{N}]+`, TAIL = String.raw`\s+(?!\S)|\s+`;
const SPLITS = new Map(["", "{1,3}"].map((digits) => [
  String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|${LINES}|\p{N}${digits}|${OTHERS}[\r\n]*|\s*[\r\n]+|${TAIL}`,
  String.raw`'(?:[sS\u017f]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|${LINES}|\p{N}${digits}|${OTHERS}[\r\n]*|\s*[\r\n]+|${TAIL}`,
]));
const GPT2 = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|${OTHERS}|${TAIL}`;
SPLITS.set(GPT2, GPT2);

const WORD = String.raw`[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]`;
const WHITESPACE = String.raw`${WORD}+|(?:(?!${WORD})\S)+`;

/** @param {string} pattern */
const compiled = (pattern) =>
  new RegExp(pattern.replace(/\\s/g, "\\p{White_Space}").replace(/\\S/g, "\\P{White_Space}"), "gu");

/** The letters that stand for bytes in byte-level vocabularies. */
const LETTERS = (() => {
  let next = 256;
  const isPlain = (/** @type {number} */ byte) => (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPlain(byte) ? byte : next++));
})();
const BYTES = new Map(LETTERS.map((letter, byte) => [letter, byte]));
const utf8 = new TextEncoder();

/** @param {string} text */
const inLetters = (text) => Array.from(utf8.encode(text), (byte) => LETTERS[byte]).join("");

/** @param {string} token @returns {number[]} */
function bytesOf(token) {
  const bytes = Array.from(token, (letter) => BYTES.get(letter));
  return /** @type {number[]} */ (bytes.includes(undefined) ? Array.from(utf8.encode(token)) : bytes);
}

/** With the sign of the unknown for what is no character. @param {number[]} bytes */
const fromUtf8 = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));

/** Character by character: a sigma at the end of a word is one like others. @param {string} text */
const lowercase = (text) => Array.from(text, (each) => each.toLowerCase()).join("");
/** @param {string} text */
const nfc = (text) => text.normalize("NFC");

/** @param {string} what @returns {never} */
function unsupported(what) {
  throw new RFError(
    `The bundle's tokenizer has ${what}, which this library does not read. Give token ids in place of texts: the package tokenizers makes them.`,
    "unsupported",
  );
}

/** @param {any} part */
const kindOf = (part) => (part === null || part === undefined ? "" : typeof part.type === "string" ? part.type : "another");

/** @param {string} text */
function cut(text) {
  const characters = Array.from(text.slice(0, 200));
  return characters.length <= 80 ? text : `${characters.slice(0, 77).join("")}...`;
}

/** @param {string[]} parts */
function listed(parts) {
  const all = [...new Set(parts)], text = all.slice(0, NAMED).map((part) => quoted(cut(part))).join(", ");
  return all.length > NAMED ? `${text} and ${all.length - NAMED} more` : text;
}

/** A vocabulary, and how a text is cut and read with it. */
export class Tokenizer {
  /** @type {Map<string, number>} */ #ids = new Map();
  /** @type {Map<number, string>} */ #words = new Map();
  /** @type {Map<string, [number, number]>} */ #merges = new Map(); // "left right": rank and id
  /** @type {Map<string, number>} */ #added = new Map(); // that are found in texts
  /** @type {Set<number>} */ #special = new Set();
  /** @type {Set<number>} */ #control;
  /** @type {number} */ #unknown;
  #isByteLevel;
  #normalize = (/** @type {string} */ text) => text;
  /** @type {RegExp} */ #pieces;
  #addsPrefixSpace = false;
  #ignoresMerges = false;

  /**
   * @param {Uint8Array} content Of a tokenizer.json. @param {string} where @param {number} vocabSize
   * @param {readonly number[]} controlIds That stand for a place and not for a text.
   */
  constructor(content, where, vocabSize, controlIds) {
    const document = plain(parseJson(content, where)), model = document?.model, kind = kindOf(model);
    const isKnown = ["WordLevel", "BPE"].includes(kind) && typeof model.vocab === "object" && !Array.isArray(model.vocab);
    if (!isKnown) unsupported(`a model of the kind ${quoted(kind)}`);
    this.#isByteLevel = kind === "BPE";
    for (const [word, id] of Object.entries(model.vocab ?? {})) {
      if (!Number.isInteger(id) || id < 0) unsupported("ids that are no whole numbers");
      this.#ids.set(word, id);
    }
    this.#pieces = compiled(this.#isByteLevel ? this.#readBpe(document) : this.#readWords(document));
    this.#readAdded(document.added_tokens);
    const largest = Math.max(0, ...batches(this.#ids.values()));
    if (largest >= vocabSize) {
      throw new RFError(
        `${where} makes ids up to ${largest}, and the model knows ${vocabSize}. The tokenizer is not the model's. ` +
          `${REMEDY}`,
      );
    }
    for (const [word, id] of this.#ids) if (!this.#words.has(id)) this.#words.set(id, word);
    this.#unknown = this.#ids.get(model.unk_token) ?? -1;
    this.#control = new Set(this.#special);
    if (this.#unknown >= 0) this.#control.add(this.#unknown);
    const added = new Set(this.#added.values());
    for (const [word, id] of this.#ids) {
      const isNamed = !this.#isByteLevel || controlIds.includes(id); // texts such as [i] and <br> are plain tokens of a BPE
      if (isNamed && !added.has(id) && CONTROL.test(word) && !BYTE.test(word)) this.#control.add(id);
    }
  }

  get kind() {
    return this.#isByteLevel ? "byte-level BPE" : "WordLevel";
  }

  /** All words that a text can have, in the order of their ids; null where words are made of pieces. */
  get words() {
    return this.#isByteLevel ? null : this.#vocabulary;
  }

  get #vocabulary() {
    const words = [...this.#ids].filter(([, id]) => !this.#control.has(id)).sort((a, b) => a[1] - b[1]).map(([word]) => word);
    if (!this.#isByteLevel) return words;
    return words.filter((word) => word.startsWith("Ġ")).map((word) => fromUtf8(bytesOf(word)).slice(1));
  }

  /** @param {any} document */
  #readWords({ normalizer, pre_tokenizer, post_processor, decoder }) {
    if (!["", "Lowercase"].includes(kindOf(normalizer))) unsupported(`a normalizer of the kind ${quoted(kindOf(normalizer))}`);
    const cutter = kindOf(pre_tokenizer);
    if (!["Whitespace", "WhitespaceSplit"].includes(cutter)) unsupported(`a pre-tokenizer of the kind ${quoted(cutter)}`);
    if (post_processor) unsupported(`a post-processor of the kind ${quoted(kindOf(post_processor))}`);
    if (decoder) unsupported(`a decoder of the kind ${quoted(kindOf(decoder))}`);
    if (normalizer) this.#normalize = lowercase;
    return cutter === "Whitespace" ? WHITESPACE : "\\S+";
  }

  /** @param {any} document */
  #readBpe({ model, normalizer, pre_tokenizer, post_processor, decoder }) {
    const option = ["unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"].find((name) => model[name]);
    if (option) unsupported(`the option ${quoted(option)}`);
    if (!["", "NFC"].includes(kindOf(normalizer))) unsupported(`a normalizer of the kind ${quoted(kindOf(normalizer))}`);
    if (!["", "ByteLevel"].includes(kindOf(post_processor))) unsupported(`a post-processor of the kind ${quoted(kindOf(post_processor))}`);
    if (kindOf(decoder) !== "ByteLevel") unsupported(`a decoder of the kind ${quoted(kindOf(decoder))}`);
    if (normalizer) this.#normalize = nfc;
    this.#ignoresMerges = Boolean(model.ignore_merges);
    if (!Array.isArray(model.merges)) unsupported("no list of merges");
    for (const each of model.merges) {
      const pair = typeof each === "string" ? each.split(" ") : each;
      if (!Array.isArray(pair) || pair.length !== 2) unsupported("a merge that is no pair");
      const [left, right] = pair, id = this.#ids.get(left + right);
      if (id === undefined || !this.#ids.has(left) || !this.#ids.has(right)) unsupported("a merge of tokens that it does not have");
      this.#merges.set(`${left} ${right}`, [this.#merges.size, id]);
    }
    return this.#readCutter(pre_tokenizer);
  }

  /** @param {any} cutter */
  #readCutter(cutter) {
    if (kindOf(cutter) === "ByteLevel" && cutter.use_regex !== false) {
      this.#addsPrefixSpace = Boolean(cutter.add_prefix_space);
      return GPT2;
    }
    if (kindOf(cutter) !== "Sequence") unsupported(`a pre-tokenizer of the kind ${quoted(kindOf(cutter))}`);
    const [split, bytes, ...more] = cutter.pretokenizers ?? [];
    if (more.length || kindOf(split) !== "Split" || kindOf(bytes) !== "ByteLevel" || bytes.use_regex !== false || bytes.add_prefix_space !== false) {
      unsupported("a pre-tokenizer of other parts than Split and ByteLevel");
    }
    const pattern = split.behavior === "Isolated" && split.invert === false ? SPLITS.get(split.pattern?.Regex) : undefined;
    return pattern ?? unsupported("a pre-tokenizer with another pattern than GPT-2's, Llama 3's and Qwen's");
  }

  /** @param {any} tokens */
  #readAdded(tokens) {
    for (const token of tokens ?? []) {
      const { content, id } = token;
      if (!content || typeof content !== "string" || !Number.isInteger(id) || id < 0) unsupported("an added token without a text or an id");
      this.#ids.set(content, id);
      if (token.special) { // read as plain text: only a template writes them
        this.#special.add(id);
        continue;
      }
      const flag = ["single_word", "lstrip", "rstrip"].find((name) => token[name]);
      if (flag) unsupported(`an added token with the flag ${quoted(flag)}`);
      if (!this.#isByteLevel || !/^[\x00-\x7f]*$/.test(content)) unsupported(`an added token ${quoted(content)} that is no special one`);
      this.#added.set(content, id);
    }
  }

  /**
   * The ids of a text, none for a blank one. Raises RFError for what the model could only misread.
   *
   * @param {string} text @param {number} maxTokens @param {"prompt"|"question"|"text"} what
   */
  encode(text, maxTokens, what) {
    if (typeof text !== "string") throw new RFError(`A ${what} must be a text, got ${typeof text}.`);
    if (IS_BLANK.test(text)) return [];
    const shown = `the ${what} ${quoted(cut(text))}`, numCharacters = text.length > MAX_CHARACTERS ? Array.from(text).length : 0;
    if (numCharacters > MAX_CHARACTERS) {
      throw new RFError(
        `The ${what} has ${numCharacters} characters, and at most ${MAX_CHARACTERS} are read. Shorten it: ` +
          `${quoted(cut(text))}`,
      );
    }
    if (/\p{Surrogate}/u.test(text)) {
      throw new RFError(`T${shown.slice(1)} cannot be read: half of a character is missing. Write it in valid Unicode.`);
    }
    const control = /** @type {string[]} */ ([]);
    let ids = /** @type {number[]} */ ([]);
    for (const part of this.#split(text)) {
      const own = typeof part === "number" ? [part] : this.#cut(part).flatMap((piece) => this.#read(piece));
      ids = ids.concat(own);
      for (const id of own) if (id !== this.#unknown && this.#control.has(id)) control.push(/** @type {string} */ (this.#words.get(id)));
    }
    if (ids.some((id) => id < 0 || id === this.#unknown)) throw this.#unknownIn(text, shown);
    if (ids.length > maxTokens) {
      const place = what === "prompt" ? " for this size of picture" : "";
      throw new RFError(
        `The ${what} has ${ids.length} tokens and the model takes ${maxTokens}${place}. Shorten it: ` +
          `${quoted(cut(text))}`,
      );
    }
    if (control.length) {
      throw new RFError(
        `${listed(control)} in ${shown} is a control token of the model and no text. Leave it out, or write it ` +
          "otherwise.",
      );
    }
    return ids;
  }

  /**
   * Texts whose ids, or whose refusal, the bundle knows; raises RFError (unsupported) where one is read otherwise here.
   *
   * @param {Uint8Array} content @param {string} where
   */
  replay(content, where) {
    const texts = plain(parseJson(content, where))?.texts;
    if (!Array.isArray(texts)) throw new RFError(`${where} has no list 'texts'. Export the bundle again.`, "damaged");
    for (const each of texts) {
      if (typeof each?.text !== "string" || !(each.ids === null || Array.isArray(each.ids))) {
        throw new RFError(`${where} has a text without ids. Export the bundle again.`, "damaged");
      }
      if (String(this.#tryEncode(each.text)) === String(each.ids)) continue;
      throw new RFError(
        `This library reads the bundle's tokenizer otherwise than the bundle was made with: ${quoted(each.text)} has other ids, see ${where}. ` +
          "Give token ids in place of texts.",
        "unsupported",
      );
    }
  }

  /** @param {string} text @returns {?number[]} */
  #tryEncode(text) {
    try {
      return this.encode(text, MAX_CHARACTERS, "text");
    } catch (error) {
      if (error instanceof RFError) return null;
      throw error;
    }
  }

  /** One that ends within a character ends with the sign of the unknown. @param {readonly number[]} ids */
  decode(ids) {
    const tokens = ids.filter((id) => this.#words.has(id) && !this.#special.has(id)).map((id) => /** @type {string} */ (this.#words.get(id)));
    return this.#isByteLevel ? fromUtf8(tokens.flatMap(bytesOf)) : tokens.join(" ");
  }

  /**
   * The tokens that were added, as ids, and the texts between them.
   *
   * @param {string} text @returns {(string|number)[]}
   */
  #split(text) {
    if (!this.#added.size) return [text];
    const escaped = [...this.#added.keys()].sort((a, b) => b.length - a.length).map((each) => each.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
    return text.split(new RegExp(`(${escaped.join("|")})`)).filter(Boolean).map((part) => this.#added.get(part) ?? part);
  }

  /** As the pre-tokenizer cuts a text. @param {string} text */
  #cut(text) {
    const normal = this.#normalize(text);
    return (this.#addsPrefixSpace && !normal.startsWith(" ") ? ` ${normal}` : normal).match(this.#pieces) ?? [];
  }

  /** @param {string} piece @returns {number[]} -1 for what it does not have. */
  #read(piece) {
    if (!this.#isByteLevel) return [this.#ids.get(piece) ?? this.#unknown];
    const letters = inLetters(piece), whole = this.#ignoresMerges ? this.#ids.get(letters) : undefined;
    return whole === undefined ? this.#merge(letters) : [whole];
  }

  /** The pair of the lowest rank first, the leftmost of these, until there is none. @param {string} piece */
  #merge(piece) {
    const ids = Array.from(piece).filter((letter) => !this.#ids.has(letter)).map(() => -1); // bytes that it does not have
    const texts = Array.from(piece).filter((letter) => this.#ids.has(letter));
    const before = texts.map((_, index) => index - 1), after = texts.map((_, index) => index + 1), queue = new Queue();
    const consider = (/** @type {number} */ at) => {
      const pair = at >= 0 && after[at] < texts.length ? `${texts[at]} ${texts[after[at]]}` : "", found = this.#merges.get(pair);
      if (found) queue.push({ rank: found[0], at, pair });
    };
    texts.forEach((_, index) => consider(index));
    for (let best = queue.pop(); best; best = queue.pop()) {
      const { at, pair } = best, right = after[at];
      if (!texts[at] || right >= texts.length || `${texts[at]} ${texts[right]}` !== pair) continue; // merged meanwhile
      texts[at] += texts[right], texts[right] = "";
      after[at] = after[right];
      if (after[at] < texts.length) before[after[at]] = at;
      consider(before[at]), consider(at);
    }
    return [...ids, ...texts.filter(Boolean).map((each) => /** @type {number} */ (this.#ids.get(each)))];
  }

  /** @param {string} text @param {string} shown */
  #unknownIn(text, shown) {
    const words = [...new Set(text.split(BLANKS).filter(Boolean))].slice(0, MOST_WORDS);
    const found = /** @type {Set<string>} */ (new Set()), signs = /** @type {Set<string>} */ (new Set());
    for (const word of words) {
      for (const piece of this.#cut(word)) {
        if (!this.#read(piece).some((id) => id < 0 || id === this.#unknown)) continue;
        if (ALNUM.test(piece)) found.add(word.replace(OUTER_SIGNS, "") || word);
        else signs.add(piece);
      }
    }
    const parts = found.size ? [...found] : [...signs];
    if (!parts.length) return new RFError(`The model cannot read all of ${shown}. Use words of its vocabulary.`);
    const hints = parts.slice(0, NAMED).flatMap((part) => {
      const near = this.#nearest(part);
      return near.length ? [`for ${quoted(part)} ${near.map(quoted).join(" or ")}`] : [];
    });
    return new RFError(
      `The model does not know ${listed(parts)} in ${shown}. Use words of its vocabulary${hints.length ? `: ${hints.join(", ")}` : ""}. ` +
        "All of them: rf-export inspect BUNDLE --vocabulary",
    );
  }

  /** @param {string} part */
  #nearest(part) {
    const word = this.#normalize(part);
    return ALNUM.test(word) && Array.from(word).length <= LONGEST_WORD ? closeWords(word, this.#vocabulary) : [];
  }
}

/** Maxima of parts: a call takes so many arguments only. @param {Iterable<number>} values */
function batches(values) {
  const all = [...values], maxima = [];
  for (let at = 0; at < all.length; at += 10_000) maxima.push(Math.max(...all.slice(at, at + 10_000)));
  return maxima;
}

/** A heap: the lowest rank first, the leftmost of these. */
class Queue {
  /** @type {{rank: number, at: number, pair: string}[]} */ #items = [];

  /** @param {number} a @param {number} b */
  #isBefore(a, b) {
    const one = this.#items[a], other = this.#items[b];
    return one.rank - other.rank || one.at - other.at;
  }

  /** @param {number} a @param {number} b */
  #swap(a, b) {
    [this.#items[a], this.#items[b]] = [this.#items[b], this.#items[a]];
  }

  /** @param {{rank: number, at: number, pair: string}} item */
  push(item) {
    let at = this.#items.push(item) - 1;
    for (let up = (at - 1) >> 1; at && this.#isBefore(at, up) < 0; at = up, up = (at - 1) >> 1) this.#swap(at, up);
  }

  pop() {
    const items = this.#items;
    if (items.length > 1) this.#swap(0, items.length - 1);
    const first = items.pop();
    for (let at = 0, least; ; at = least) {
      least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) if (child < items.length && this.#isBefore(child, least) < 0) least = child;
      if (least === at) return first;
      this.#swap(at, least);
    }
  }
}
