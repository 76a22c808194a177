use std::collections::BTreeMap;
use std::io::Read as _;

use super::*;

fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(archive);
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    });
    entries.collect()
}

#[test]
fn digests_match_blobs() {
    let path = std::env::temp_dir().join(format!("ambit-oci-{}.tar", std::process::id()));
    let files = [File { path: "app".to_owned(), content: b"#!".to_vec() }];
    write(&path, "docker.io/ambit/app:1", "arm64", &files, "/app").unwrap();
    let first = std::fs::read(&path).unwrap();
    write(&path, "docker.io/ambit/app:1", "arm64", &files, "/app").unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap(), "the same again");
    std::fs::remove_file(&path).unwrap();

    let found = entries(&first);
    let json = |content: &[u8]| serde_json::from_slice::<Value>(content).unwrap();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = &found[&format!("blobs/sha256/{digest}")];
        assert_eq!(hash(content), digest);
        assert_eq!(descriptor["size"], content.len());
        content.clone()
    };
    let index = json(&found["index.json"]);
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/ambit/app:1");
    let manifest = json(&blob(&index["manifests"][0]));
    let layer = blob(&manifest["layers"][0]);
    let config = json(&blob(&manifest["config"]));
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hash(&layer)));
    assert_eq!(config["config"]["Entrypoint"][0], "/app");
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(index["manifests"][0]["platform"]["architecture"], "arm64");
    assert_eq!(entries(&layer)["app"], b"#!");
}
