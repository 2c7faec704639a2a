/** Words that look like another one, as Python's difflib finds them. Knows nothing of tokenizers. */

const MOST = 2, MOST_COMPARED = 20_000, CUTOFF = 0.65;

/**
 * Characters in matching blocks: the longest one first, then those on both sides of it.
 *
 * @param {string[]} a @param {string[]} b @returns {number}
 */
function numMatching(a, b) {
  let best = 0, atA = 0, atB = 0;
  for (let i = 0; i < a.length; ++i) {
    for (let j = 0; j < b.length; ++j) {
      let size = 0;
      while (i + size < a.length && j + size < b.length && a[i + size] === b[j + size]) ++size;
      if (size > best) best = size, atA = i, atB = j;
    }
  }
  if (!best) return 0;
  return best + numMatching(a.slice(0, atA), b.slice(0, atB)) + numMatching(a.slice(atA + best), b.slice(atB + best));
}

/** @param {string} word @param {readonly string[]} vocabulary */
export function closeWords(word, vocabulary) {
  const wanted = Array.from(word), found = /** @type {[number, string][]} */ ([]);
  let numCompared = 0;
  for (const each of vocabulary) {
    const letters = Array.from(each);
    if (letters.length < 2 || Math.abs(letters.length - wanted.length) > 2 + Math.floor(wanted.length / 4)) continue;
    if (numCompared++ === MOST_COMPARED) break;
    const ratio = (2 * numMatching(letters, wanted)) / (letters.length + wanted.length);
    if (ratio >= CUTOFF) found.push([ratio, each]);
  }
  return found.sort((a, b) => b[0] - a[0] || (a[1] < b[1] ? 1 : -1)).slice(0, MOST).map(([, each]) => each);
}
