// Checks documents and answers against Shopify's Admin schema, version 2026-10.
//
//   node shopify.mjs DIR < {"subset": SDL or null, "answers": [{document, variables, response}]}
//
// DIR is where this folder's packages are installed. Prints a JSON list of what is wrong, [] when all is well.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { gunzipSync } from "node:zlib";

const dir = process.argv[2];
const require = createRequire(join(dir, "package.json"));
const {
  GraphQLError,
  NoDeprecatedCustomRule,
  buildClientSchema,
  execute,
  isEnumType,
  isInterfaceType,
  isObjectType,
  isLeafType,
  parse,
  print,
  specifiedRules,
  validate,
} = require("graphql");

const file = join(dir, "node_modules/@shopify/dev-mcp/dist/data/admin_2026-10.json.gz");
const introspection = JSON.parse(gunzipSync(readFileSync(file)));
const schema = buildClientSchema(introspection.data ?? introspection);

// What GraphQL itself leaves open about Shopify's scalars.
const shapes = {
  DateTime: /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$/,
  Decimal: /^-?\d+(\.\d+)?$/,
  UnsignedInt64: /^\d+$/,
};
for (const [name, shape] of Object.entries(shapes)) {
  schema.getType(name).serialize = (value) => {
    if (typeof value !== "string" || !shape.test(value)) throw new GraphQLError(`${JSON.stringify(value)} is no ${name}`);
    return value;
  };
}

/** The document must be valid, and running it over the answer must give the answer again. */
function checkAnswer({ document: source, variables, response }) {
  const document = parse(source);
  const wrong = validate(schema, document, [...specifiedRules, NoDeprecatedCustomRule]);
  if (wrong.length > 0) return wrong.map((error) => error.message);
  if (response.data === undefined || response.data === null) return [];
  const result = execute({
    schema,
    document,
    rootValue: response.data,
    variableValues: variables ?? {},
    fieldResolver: (source, _arguments, _context, info) => source[info.path.key],
    // An object behind an interface says by its id what it is.
    typeResolver: (value) => value.__typename ?? /^gid:\/\/shopify\/(\w+)\//.exec(value.id ?? "")?.[1],
  });
  const errors = (result.errors ?? []).map((error) => `${(error.path ?? []).join(".")}: ${error.message}`);
  const plain = JSON.parse(JSON.stringify(result.data ?? null));
  if (errors.length === 0 && !isDeepStrictEqual(plain, response.data)) {
    errors.push(`the schema makes ${JSON.stringify(plain)} of ${JSON.stringify(response.data)}`);
  }
  return errors;
}

/** Each type, field, argument and enum value of the subset must be Shopify's own. */
function checkSubset(source) {
  const wrong = [];
  const expect = (holds, message) => holds || wrong.push(message);
  for (const node of parse(source).definitions) {
    if (!node.name) continue;
    const [name, type] = [node.name.value, schema.getType(node.name.value)];
    const composite = isObjectType(type) || isInterfaceType(type);
    expect(type !== undefined, `there is no type ${name}`);
    if (node.kind === "ScalarTypeDefinition") expect(isLeafType(type), `${name} is no scalar`);
    if (node.kind === "EnumTypeDefinition") {
      const values = isEnumType(type) ? type.getValues().map((value) => value.name) : [];
      for (const value of node.values) expect(values.includes(value.name.value), `${name} has no ${value.name.value}`);
    }
    for (const wanted of node.interfaces ?? []) {
      const own = composite ? type.getInterfaces().map((one) => one.name) : [];
      expect(own.includes(wanted.name.value), `${name} does not implement ${wanted.name.value}`);
    }
    for (const wanted of node.fields ?? []) {
      const field = composite ? type.getFields()[wanted.name.value] : undefined;
      const path = `${name}.${wanted.name.value}`;
      expect(String(field?.type) === print(wanted.type), `${path} is ${field?.type}, not ${print(wanted.type)}`);
      expect(!field?.deprecationReason, `${path} is deprecated`);
      for (const argument of wanted.arguments ?? []) {
        const real = field?.args.find((one) => one.name === argument.name.value);
        const type = print(argument.type);
        expect(String(real?.type) === type, `${path}(${argument.name.value}:) is ${real?.type}, not ${type}`);
      }
    }
  }
  return wrong;
}

const { subset, answers } = JSON.parse(readFileSync(0, "utf8"));
const wrong = subset ? checkSubset(subset) : [];
answers.forEach((answer, index) => wrong.push(...checkAnswer(answer).map((text) => `answer ${index + 1}: ${text}`)));
console.log(JSON.stringify(wrong));
