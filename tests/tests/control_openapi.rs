//! The OpenAPI document against a live control server: same routes, same statuses, same shapes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use system_tests::binary::workspace_root;
use system_tests::mock_vm::{Driver, MockVm};
use yaml_rust2::{Yaml, YamlLoader};

const VERBS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

/// The document as JSON, which is all that OpenAPI needs of YAML.
fn document() -> Value {
    let text = fs::read_to_string(workspace_root().join("resources/openapi.yaml")).unwrap();
    let mut documents = YamlLoader::load_from_str(&text).unwrap();
    assert_eq!(documents.len(), 1);
    to_json(&documents.remove(0))
}

fn to_json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Real(text) => panic!("no real numbers are used: {text}"),
        Yaml::Integer(n) => json!(n),
        Yaml::String(text) => json!(text),
        Yaml::Boolean(b) => json!(b),
        Yaml::Array(items) => items.iter().map(to_json).collect(),
        Yaml::Hash(map) => map
            .iter()
            .map(|(key, value)| {
                (key.as_str().expect("keys are strings").to_owned(), to_json(value))
            })
            .collect(),
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("no aliases are used"),
    }
}

/// Follows `$ref`.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref").and_then(Value::as_str) {
        Some(path) => {
            let target = document.pointer(path.trim_start_matches('#'));
            resolve(document, target.unwrap_or_else(|| panic!("dangling {path}")))
        }
        None => value,
    }
}

/// Every operation: verb in upper case, path, what the document says of it.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            let verbs = item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters");
            verbs.map(move |(verb, operation)| {
                assert!(VERBS.contains(&verb.as_str()), "{path}: {verb} is no verb");
                (verb.to_uppercase(), path.clone(), operation)
            })
        })
        .collect()
}

/// Where `value` does not have the shape that `schema` says; nothing if it has.
fn mismatches(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let schema = resolve(document, schema);
    if value.is_null() && schema["nullable"] == json!(true) {
        return Vec::new();
    }
    if let Some(all) = schema["allOf"].as_array() {
        return all.iter().flat_map(|s| mismatches(document, s, value, at)).collect();
    }
    if let Some(any) = schema["oneOf"].as_array() {
        let fits = any.iter().filter(|s| mismatches(document, s, value, at).is_empty()).count();
        return if fits == 1 { vec![] } else { vec![format!("{at}: {fits} variants fit")] };
    }
    if let Some(allowed) = schema["enum"].as_array() {
        let known = allowed.contains(value);
        return if known { vec![] } else { vec![format!("{at}: {value} is not in {allowed:?}")] };
    }
    match (schema["type"].as_str().unwrap(), value) {
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) => Vec::new(),
        ("integer", Value::Number(n)) if n.is_i64() || n.is_u64() => Vec::new(),
        ("array", Value::Array(items)) => items
            .iter()
            .flat_map(|item| mismatches(document, &schema["items"], item, &format!("{at}[]")))
            .collect(),
        ("object", Value::Object(_)) => object_mismatches(document, schema, value, at),
        (wanted, other) => vec![format!("{at}: {other} is no {wanted}")],
    }
}

fn object_mismatches(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            found.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, member) in value.as_object().unwrap() {
        match schema["properties"].get(name) {
            Some(schema) => {
                found.extend(mismatches(document, schema, member, &format!("{at}.{name}")))
            }
            None if schema["additionalProperties"] == json!(false) => {
                found.push(format!("{at}: {name} is not documented"));
            }
            None => {}
        }
    }
    found
}

/// Checks an answer against what the document says of its operation; gives its status.
fn check(
    document: &Value,
    name: &str,
    operation: &Value,
    answer: aerostat_api::client::Response,
) -> u16 {
    let status = answer.status();
    let said = resolve(document, &operation["responses"][status.to_string()]);
    let text = answer.into_text().unwrap();
    assert!(!said.is_null(), "{name}: {status} is not documented: {text}");
    let Some((kind, content)) =
        said.get("content").and_then(Value::as_object).and_then(|content| content.iter().next())
    else {
        assert_eq!(text, "", "{name}: {status} has no body in the document");
        return status;
    };
    let values: Vec<Value> = match kind.as_str() {
        "application/json" => vec![serde_json::from_str(&text).unwrap()],
        "application/x-ndjson" => {
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
        "text/plain" => vec![json!(text)],
        other => panic!("{name}: {other} is unknown here"),
    };
    for value in values {
        let found = mismatches(document, &content["schema"], &value, name);
        assert!(found.is_empty(), "{found:#?}");
        assert!(!text.contains("Invalid request method"), "{name}: {text}");
    }
    status
}

#[test]
fn the_document_lists_exactly_the_routes_that_are_served() {
    let document = document();
    let documented: BTreeSet<_> =
        operations(&document).into_iter().map(|(verb, path, _)| (verb, path)).collect();
    let served: BTreeSet<_> = aerostat::control::endpoints()
        .map(|(verb, path)| (verb.to_owned(), path.to_owned()))
        .collect();
    assert_eq!(documented, served);
}

/// The path of an operation's example: names in braces are those of its body.
fn example_path(path: &str) -> String {
    match path.split_once('{') {
        Some((before, _name)) => format!("{before}rootfs"),
        None => path.to_owned(),
    }
}

/// The example of an operation's body; files that it names are in `directory`.
fn example(document: &Value, operation: &Value, directory: &Path) -> Option<Value> {
    let body = resolve(document, &operation["requestBody"]);
    let mut example = body["content"]["application/json"].get("example")?.clone();
    for (name, value) in example.as_object_mut().unwrap() {
        if name.contains("path_on_host") || name.ends_with("_path") {
            let file = Path::new(value.as_str().unwrap()).file_name();
            let path = file.map(|file| directory.join(file)).filter(|path| path != directory);
            if let (Some(path), false) = (path, name == "kernel_image_path") {
                fs::write(&path, [0; 4096]).unwrap();
                *value = json!(path);
            }
        }
        if name == "scenario" {
            *value = json!("echo");
        }
    }
    Some(example)
}

/// Sends the example of every operation to a VM of its own, and gives the statuses that came.
fn send_every_example(start: impl Fn() -> MockVm) -> BTreeSet<u16> {
    let document = document();
    let mut statuses = BTreeSet::new();
    for (verb, path, operation) in operations(&document) {
        let vm = start();
        let name = format!("{verb} {path}");
        let mut bytes = Vec::new();
        if let Some(example) = example(&document, operation, vm.directory()) {
            let body = resolve(&document, &operation["requestBody"]);
            let schema = &body["content"]["application/json"]["schema"];
            let found = mismatches(&document, schema, &example, &name);
            assert!(found.is_empty(), "the example itself is wrong: {found:#?}");
            bytes = serde_json::to_vec(&example).unwrap();
        }
        let answer = vm.client().raw(&verb, &example_path(&path), &bytes).unwrap();
        statuses.insert(check(&document, &name, operation, answer));
    }
    statuses
}

#[test]
fn every_example_gets_a_documented_answer_from_a_vm_that_runs() {
    let statuses = send_every_example(|| MockVm::start(Driver::Follows));
    assert_eq!(statuses, BTreeSet::from([200, 204, 400]));
}

#[test]
fn every_example_gets_a_documented_answer_before_the_start() {
    let statuses = send_every_example(|| MockVm::unconfigured(|_config| Ok(())));
    assert_eq!(statuses, BTreeSet::from([200, 204, 400, 409]));
}

#[test]
fn answers_keep_their_shape_when_everything_in_them_is_present() {
    let document = document();
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    client.update_balloon(128).unwrap();
    for path in ["/balloon/status", "/balloon/operation"] {
        let operation = &document["paths"][path]["get"];
        let answer = client.raw("GET", path, &[]).unwrap();
        assert_eq!(check(&document, path, operation, answer), 200);
    }
    let operation = &document["paths"]["/balloon/operation"]["get"];
    for (query, status) in [("id=1", 200), ("id=9", 404), ("id=x", 400)] {
        let path = format!("/balloon/operation?{query}");
        let answer = client.raw("GET", &path, &[]).unwrap();
        assert_eq!(check(&document, &path, operation, answer), status);
    }
}

#[test]
fn a_request_that_the_document_forbids_is_refused_by_name_in_either_state() {
    let document = document();
    let vms = [MockVm::start(Driver::Follows), MockVm::unconfigured(|_config| Ok(()))];
    for (verb, path, operation) in operations(&document) {
        let body = resolve(&document, &operation["requestBody"]);
        let schema = resolve(&document, &body["content"]["application/json"]["schema"]);
        if schema["additionalProperties"] != json!(false) {
            continue;
        }
        let name = format!("{verb} {path}");
        for vm in &vms {
            let good = example(&document, operation, vm.directory()).unwrap();
            let refused = |body: &Value, reason: &str| {
                let bytes = serde_json::to_vec(body).unwrap();
                let path = example_path(&path);
                let answer = vm.client().raw(&verb, &path, &bytes).unwrap();
                assert_eq!(answer.status(), 400, "{name}");
                let said = answer.into_text().unwrap();
                assert!(said.contains(reason), "{name}: {said}");
            };
            let mut surprising = good.clone();
            surprising["surprise"] = json!(1);
            refused(&surprising, "unknown field `surprise`");
            for required in schema["required"].as_array().into_iter().flatten() {
                let required = required.as_str().unwrap();
                let mut short = good.clone();
                short.as_object_mut().unwrap().remove(required);
                refused(&short, &format!("missing field `{required}`"));
            }
        }
        assert!(vms.iter().all(|vm| vm.log().is_empty()), "{name} had an effect");
    }
}
