//! States of the CA in the cluster from which a controller must start, against a fake API server.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

use super::*;
use crate::kubernetes::fake_api::FakeApi;

const SECRETS: &str = "/api/v1/namespaces/system/secrets";
const CONFIG_MAPS: &str = "/api/v1/namespaces/system/configmaps";
const DAY: Duration = Duration::from_hours(24);

fn config() -> Config {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("controller.yaml");
    std::fs::write(&file, "kubernetes: {namespace: system, pod_name: one}").unwrap();
    Config::read(&file).unwrap()
}

fn made(age: Duration) -> Material {
    Material::make(&TrustDomain::default(), SystemTime::now() - age).unwrap()
}

fn secret(name: &str, data: BTreeMap<String, ByteString>) -> serde_json::Value {
    let mut secret = Secret { data: Some(data), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.resource_version = Some("1".to_owned());
    serde_json::to_value(secret).unwrap()
}

/// A Secret with the state that begins with a CA.
fn stored(material: &Material) -> serde_json::Value {
    let facts =
        Facts { now: SystemTime::now(), request: None, own: Some(material), published: None, can_sign: true };
    let state = State::first(|| unreachable!(), &facts).unwrap();
    let text = serde_json::to_vec(&state).unwrap();
    secret("ambit-ca", BTreeMap::from([("ca.json".to_owned(), ByteString(text))]))
}

/// A Secret `cacerts` with a CA.
fn own(material: &Material) -> serde_json::Value {
    let parts = serde_json::to_value(material).unwrap();
    let part = |name: &str| ByteString(parts[name].as_str().unwrap().as_bytes().to_vec());
    let data = [
        ("ca-cert.pem", "chain"),
        ("ca-key.pem", "key"),
        ("cert-chain.pem", "chain"),
        ("root-cert.pem", "roots"),
    ];
    secret("cacerts", data.map(|(key, name)| (key.to_owned(), part(name))).into())
}

/// A CA with only the parts that a user's own has.
fn without_root_key(material: &Material) -> Material {
    let mut parts = serde_json::to_value(material).unwrap();
    parts.as_object_mut().unwrap().remove("root_key");
    serde_json::from_value(parts).unwrap()
}

/// A CA whose bundle has another's root before its own.
fn behind_root_of(material: &Material, other: &Material) -> Material {
    let mut parts = serde_json::to_value(without_root_key(material)).unwrap();
    parts["roots"] = format!("{}{}", other.roots().concat(), material.roots().concat()).into();
    serde_json::from_value(parts).unwrap()
}

/// Where the CA that signs after the start comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Signs {
    Stored,
    /// Another intermediate under the stored root.
    Renewed,
    Own,
    New,
}

#[tokio::test]
async fn a_controller_starts_with_expired_cas() {
    let (good, other) = (made(Duration::ZERO), made(Duration::ZERO));
    let old_intermediate = made(400 * DAY);
    let expired = made(4_000 * DAY);
    let rows = [
        ("nothing", None, None, Signs::New),
        ("a good one", Some(good.clone()), None, Signs::Stored),
        ("an expired root in the bundle", Some(behind_root_of(&good, &expired)), None, Signs::Stored),
        ("an expired intermediate", Some(old_intermediate), None, Signs::Renewed),
        ("an expired root", Some(expired.clone()), None, Signs::New),
        ("an expired CA of the user's", Some(without_root_key(&expired)), None, Signs::New),
        ("expired, with a new one of the user's", Some(without_root_key(&expired)), Some(&other), Signs::Own),
        ("expired, with an expired one of the user's", Some(expired.clone()), Some(&expired), Signs::New),
    ];
    for (name, held, cacerts, expected) in rows {
        let api = FakeApi::default();
        if let Some(held) = &held {
            api.put(&format!("{SECRETS}/ambit-ca"), stored(held));
        }
        if let Some(cacerts) = cacerts {
            api.put(&format!("{SECRETS}/cacerts"), own(cacerts));
        }
        let config = config();
        let crate::config::Source::Kubernetes(settings) = &config.source else { panic!("not in a cluster") };
        let opened = Keeper::try_open(api.client(), &config, settings).await;
        let (keeper, authorities) = opened.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let signing = keeper.state.signing();
        let roots = |material: &Material| material.roots();
        let found = match &held {
            Some(held) if signing == held => Signs::Stored,
            Some(held) if roots(signing) == roots(held) => Signs::Renewed,
            _ if cacerts.is_some_and(|own| roots(own) == roots(signing)) => Signs::Own,
            _ => Signs::New,
        };
        assert_eq!(found, expected, "{name}");
        let now = SystemTime::now();
        authorities.borrow().serving_at(now).serving("c", now).expect(name);
        let bundle = api.get(&format!("{CONFIG_MAPS}/ambit-root")).unwrap()["data"]["root.pem"].clone();
        assert_eq!(bundle.as_str(), Some(&*keeper.state.bundle()), "{name}: daemons read it");
        // Another replica finds the same.
        let (again, _) = Keeper::try_open(api.client(), &config, settings).await.unwrap();
        assert_eq!(again.state, keeper.state, "{name}");
    }
}

#[tokio::test]
async fn a_ca_that_is_wrong_and_not_expired_is_not_replaced() {
    let api = FakeApi::default();
    let mut parts = serde_json::to_value(made(Duration::ZERO)).unwrap();
    parts["key"] = serde_json::to_value(made(Duration::ZERO)).unwrap()["key"].clone();
    let before = stored(&serde_json::from_value(parts).unwrap());
    api.put(&format!("{SECRETS}/ambit-ca"), before.clone());
    let config = config();
    let crate::config::Source::Kubernetes(settings) = &config.source else { panic!("not in a cluster") };
    let error = Keeper::try_open(api.client(), &config, settings).await.unwrap_err();
    assert!(chain(&error).contains("does not match the signing certificate"), "{}", chain(&error));
    assert_eq!(api.get(&format!("{SECRETS}/ambit-ca")), Some(before));
}
