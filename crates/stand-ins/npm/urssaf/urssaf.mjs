// Computes with the rules of mon-entreprise.urssaf.fr.
//
//   node urssaf.mjs DIR < [{date: "2026-11-30", created: "2020-01-15", nature: "artisanale", acre: false,
//                           cipav: false, flat_tax: true, sales: 2400, services: 600, liberal: 0}, ...]
//
// DIR is where this folder's packages are installed. Amounts are whole euros of a month. Prints a JSON list, one for
// each: {contributions, training, flat_tax, ceilings: [all, services], exceeded}. The amounts are whole euros of the
// month; the ceilings are those of a year, held against twelve such months.
import { readFileSync } from "node:fs";
import { join } from "node:path";

const load = async (name) => (await import(join(process.argv[2], "node_modules", name, "dist/index.js"))).default;
const rules = await load("modele-social");
const Engine = await load("publicodes");

const MICRO = "dirigeant . auto-entrepreneur";
const COMPANY = "entreprise . catégorie juridique";
const TURNOVER = "entreprise . chiffre d'affaires";
const yes = (condition) => (condition ? "oui" : "non");
const day = (date) => date.split("-").reverse().join("/");
const monthly = (euros) => `${euros} €/mois`;

const quiet = { log() {}, warn() {}, error: console.error };
const engine = new Engine(rules, { logger: quiet });

function value(rule) {
  return engine.evaluate(rule).nodeValue ?? 0;
}

// The rules leave some amounts as they are, in binary fractions: 0.5 may come as 0.49999999999999994.
function euros(rule) {
  return Math.round(Number(value(rule).toFixed(6)));
}

// They depend on the date only; each is asked for once.
const known = new Map();
function ceilings(date) {
  if (!known.has(date)) {
    known.set(date, [value(`${TURNOVER} . seuil micro . total`), value(`${TURNOVER} . seuil micro . libérale`)]);
  }
  return known.get(date);
}

function compute({ date, created, nature, acre, cipav, flat_tax, sales, services, liberal }) {
  const kinds = [sales, services, liberal].filter((euros) => euros !== 0).length;
  engine.setSituation({
    date: day(date),
    [COMPANY]: "'EI'",
    [`${COMPANY} . EI . auto-entrepreneur`]: "oui",
    "entreprise . date de création": day(created),
    "entreprise . activité . nature": `'${nature}'`,
    "entreprise . activité . nature . libérale . réglementée": yes(cipav),
    "entreprise . activité . revenus mixtes": yes(kinds > 1),
    "dirigeant . exonérations . ACRE": yes(acre),
    [`${MICRO} . impôt . versement libératoire`]: yes(flat_tax),
    [`${MICRO} . chiffre d'affaires`]: monthly(sales + services + liberal),
    [`${TURNOVER} . vente restauration hébergement`]: monthly(sales),
    [`${TURNOVER} . service BIC`]: monthly(services),
    [`${TURNOVER} . service BNC`]: monthly(liberal),
  });
  return {
    contributions: euros(`${MICRO} . cotisations et contributions . cotisations`),
    training: euros(`${MICRO} . cotisations et contributions . CFP`),
    // The rules give it in whatever unit the turnover had.
    flat_tax: flat_tax
      ? euros({ valeur: `${MICRO} . impôt . versement libératoire . montant`, unité: "€/mois" })
      : 0,
    ceilings: ceilings(date),
    exceeded: value(`${TURNOVER} . seuil micro . dépassé`) === true,
  };
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(compute)));
