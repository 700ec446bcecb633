// Prints what an answer counts and judges it: 0 fine, 3 counts errors, 4 not a JSON object.
//
// Whoever may read the repository may read its logs: of the answer only counts are printed, and the few texts that
// are the same for everybody. A list becomes its length, since its entries are users with their turnover; of `problems`
// the codes are printed, with how many there are of each.
// Always printed as JSON, so that no line of an answer can begin with `::`, a workflow command.
import { readFileSync } from 'node:fs';

/** The texts of an answer that say what ran or what to mend; no other text is printed. */
const TEXTS = new Set(['message', 'error', 'hint', 'note', 'month', 'date', 'timestamp']);
const MOST_CHARACTERS = 500;
const ID = /[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/gi;

const text = readFileSync(process.argv[2], 'utf8');
const print = (value) => process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);

/** How many there are of each code. */
function codes(problems) {
  const counted = {};
  for (const problem of problems) {
    const given = problem?.code;
    const code = typeof given === 'string' && /^[a-z][a-z0-9_]{0,60}$/.test(given) ? given : 'sans_code';
    counted[code] = (counted[code] ?? 0) + (Number.isInteger(problem?.count) ? problem.count : 1);
  }
  return counted;
}

/** The same object without what belongs to a user. */
function counts(object) {
  const kept = Object.entries(object).map(([key, value]) => {
    if (typeof value === 'number' || typeof value === 'boolean') return [key, value];
    if (typeof value === 'string') {
      return [key, TEXTS.has(key) ? value.replaceAll(ID, '…').slice(0, MOST_CHARACTERS) : undefined];
    }
    if (Array.isArray(value)) return [key, key === 'problems' ? codes(value) : value.length];
    return [key, value === null ? undefined : counts(value)];
  });
  return Object.fromEntries(kept);
}

/** Is there a count of errors above zero, at whatever depth? */
function countsErrors(value) {
  if (value === null || typeof value !== 'object') return false;
  return Object.entries(value).some(
    ([key, inner]) => (key === 'errors' && typeof inner === 'number' && inner > 0) || countsErrors(inner),
  );
}

let answer;
try {
  answer = JSON.parse(text);
} catch {
  answer = undefined;
}
if (answer === null || typeof answer !== 'object' || Array.isArray(answer)) {
  // A code of the platform, such as FUNCTION_INVOCATION_TIMEOUT, is worth reading.
  const code = text.match(/\b[A-Z]+(?:_[A-Z]+)+\b/)?.[0];
  print(`réponse illisible, ${Buffer.byteLength(text)} octets${code ? ` : ${code}` : ''}`);
  process.exitCode = 4;
} else {
  print(counts(answer));
  process.exitCode = countsErrors(answer) ? 3 : 0;
}
