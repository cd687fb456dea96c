//! Chooses the files of a repo that make up the requested model.

use std::path::{Path, PathBuf};

use super::{Choice, HubError, RepoName};

/// The order in which types are tried if none is named: first those that llama.cpp and Ollama prefer, then the next
/// larger and smaller ones that are useful on most computers.
const DEFAULT_TYPES: [&str; 20] = [
    "Q4_K_M",
    "UD-Q4_K_XL",
    "Q4_K_S",
    "Q4_K",
    "IQ4_XS",
    "IQ4_NL",
    "MXFP4",
    "MXFP4_MOE",
    "Q4_0",
    "Q4_1",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_0",
    "Q6_K",
    "Q8_0",
    "Q3_K_M",
    "Q2_K",
    "BF16",
    "F16",
    "FP16",
];

/// The types of GGUF files to quantize from, best first. Nearly all models are published with 16 bits.
const ORIGINAL_TYPES: [&str; 6] = ["BF16", "F16", "FP16", "F32", "Q8_0", "Q6_K"];

/// The files of an adapter folder that are used.
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// One file of a repo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepoFile {
    /// Its path in the repo.
    pub(super) path: String,
    /// Its size in bytes, if known.
    pub(super) bytes: Option<u64>,
    /// Its SHA-256; only for large files (LFS).
    pub(super) sha256: Option<String>,
    /// Its git blob id; only for small files: the SHA-1 of a header and the contents.
    pub(super) git_sha1: Option<String>,
}

impl RepoFile {
    pub(super) fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), bytes: None, sha256: None, git_sha1: None }
    }
}

/// The files that were chosen for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected<'a> {
    /// The first one is opened; the others are further parts of a split model.
    pub(super) files: Vec<&'a RepoFile>,
    /// The folder to open instead of a file.
    pub(super) folder: Option<String>,
    /// Whether it would be chosen whatever other files there are.
    pub(super) is_best: bool,
}

impl Selected<'_> {
    /// The path to open, if the files of the repo are in `root`.
    pub(super) fn entry(&self, root: &Path) -> PathBuf {
        match (&self.folder, self.files.first()) {
            (None, Some(file)) => root.join(&file.path),
            (Some(folder), _) if !folder.is_empty() => root.join(folder),
            _ => root.to_owned(),
        }
    }
}

/// A GGUF model of a repo: a file, or the parts of a split one.
struct Model<'a> {
    /// The file name without folder, part number and `.gguf`, in capitals.
    stem: String,
    folder: String,
    files: Vec<&'a RepoFile>,
    /// The number of parts that there should be.
    count: usize,
}

impl Model<'_> {
    /// Whether its name, or that of its folder, ends with a type.
    fn is_of(&self, ty: &str) -> bool {
        let ends = |name: &str| {
            let Some(before) = name.strip_suffix(ty) else { return false };
            before.is_empty() || before.ends_with(['-', '.', '_', '/'])
        };
        ends(&self.stem) || ends(&self.folder)
    }
}

/// Chooses the files for a name.
pub(super) fn choose<'a>(name: &RepoName, files: &'a [RepoFile]) -> Result<Selected<'a>, HubError> {
    let models = models(files);
    let selected = |model: &Model<'a>, is_best| Ok(Selected { files: model.files.clone(), folder: None, is_best });
    let missing =
        |asked: &str| HubError::NoSuchFile { repo: name.repo.clone(), asked: asked.to_owned(), found: names(&models) };
    match &name.choice {
        Choice::File(path) => {
            let of_path = models.iter().find(|model| model.files.iter().any(|file| file.path == *path));
            match (of_path, files.iter().find(|file| file.path == *path)) {
                (Some(model), _) if model.files.len() == model.count => selected(model, true),
                (None, Some(file)) => Ok(Selected { files: vec![file], folder: None, is_best: true }),
                _ => Err(missing(path)),
            }
        }
        Choice::Adapter => match (adapter_folder(files, ""), &models[..]) {
            (Some(selected), _) => Ok(selected),
            (None, [model]) if model.files.len() == model.count => selected(model, true),
            (None, []) => Err(missing("LoRA adapter (adapter_model.safetensors, or a .gguf file)")),
            _ => Err(HubError::ManyFiles { repo: name.repo.clone(), found: names(&models) }),
        },
        Choice::Original => {
            if let Some(folder) = folder(files) {
                return Ok(Selected { is_best: true, ..folder });
            }
            let of_type = |ty: &&str| models.iter().find(|model| model.is_of(ty) && model.files.len() == model.count);
            match ORIGINAL_TYPES.iter().find_map(of_type) {
                Some(model) => selected(model, false),
                None => choose(&RepoName { choice: Choice::Default, ..name.clone() }, files),
            }
        }
        Choice::Tag(tag) => {
            if let Some(selected) = adapter_folder(files, &format!("{tag}/")) {
                return Ok(selected);
            }
            let wanted = tag.to_ascii_uppercase();
            let shortest = |of: &str| {
                let all = models.iter().filter(|model| model.is_of(of) && model.files.len() == model.count);
                all.min_by_key(|model| (model.stem.len(), model.files[0].path.clone()))
            };
            // Q4_K and Q4 mean Q4_K_M if there is no file with exactly that type.
            let more = ["", "_M", "_K_M", "_0", "_S", "_L", "_XL"].map(|more| format!("{wanted}{more}"));
            match more.iter().find_map(|of| shortest(of)) {
                Some(model) => selected(model, true),
                None if models.is_empty() && has_safetensors(files) => {
                    Err(HubError::NoGguf { repo: name.repo.clone(), tag: tag.clone() })
                }
                None => Err(missing(tag)),
            }
        }
        Choice::Default => {
            let whole: Vec<&Model<'_>> = models.iter().filter(|model| model.files.len() == model.count).collect();
            for (rank, ty) in DEFAULT_TYPES.iter().enumerate() {
                let mut of_type: Vec<_> = whole.iter().filter(|model| model.is_of(ty)).collect();
                if of_type.len() > 1 {
                    // Unsloth's alternative recipes for the same type.
                    of_type.retain(|model| !model.stem.contains("UD-"));
                }
                // There are several models of a type: none of them is clearly the requested one.
                match of_type[..] {
                    [] => {}
                    [model] => return selected(model, rank == 0),
                    _ => return Err(HubError::ManyFiles { repo: name.repo.clone(), found: names(&models) }),
                }
            }
            match whole[..] {
                [model] => selected(model, false),
                [] => folder(files).ok_or_else(|| missing("a .gguf or .safetensors file")),
                _ => Err(HubError::ManyFiles { repo: name.repo.clone(), found: names(&models) }),
            }
        }
    }
}

/// The GGUF models, without accompanying files such as projectors of vision models and importance matrices.
fn models(files: &[RepoFile]) -> Vec<Model<'_>> {
    let mut models: Vec<Model<'_>> = Vec::new();
    for file in files {
        let (folder, base) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let lower = base.to_ascii_lowercase();
        let Some(stem) = lower.strip_suffix(".gguf") else { continue };
        if lower.contains("mmproj") || lower.contains("imatrix") {
            continue;
        }
        let (stem, count) = split_name(stem).map_or((stem, 1), |(stem, count)| (stem, count));
        let (stem, folder) = (stem.to_ascii_uppercase(), folder.to_ascii_uppercase());
        match models.iter_mut().find(|m| m.count == count && count > 1 && m.stem == stem && m.folder == folder) {
            Some(model) => model.files.push(file),
            None => models.push(Model { stem, folder, files: vec![file], count }),
        }
    }
    models.iter_mut().for_each(|model| model.files.sort_by(|a, b| a.path.cmp(&b.path)));
    models
}

/// The name and the number of parts: `name-00001-of-00003` is one of three parts of `name`.
fn split_name(stem: &str) -> Option<(&str, usize)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    let is_number = |digits: &str| digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(part) || !is_number(count) {
        return None;
    }
    Some((name, count.parse().ok().filter(|&n| n > 0)?))
}

fn names(models: &[Model<'_>]) -> Vec<String> {
    models.iter().filter_map(|model| Some(model.files.first()?.path.clone())).collect()
}

fn has_safetensors(files: &[RepoFile]) -> bool {
    files.iter().any(|file| file.path.ends_with(".safetensors") && !file.path.ends_with(ADAPTER_WEIGHTS))
}

/// The files of a safetensors folder that are needed: weights, configuration, tokenizer.
fn folder(files: &[RepoFile]) -> Option<Selected<'_>> {
    const NAMES: [&str; 8] = [
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "1_Pooling/config.json",
        "tekken.json",
        "sentencepiece.bpe.model",
        "spiece.model",
    ];
    let weights: Vec<&RepoFile> = files
        .iter()
        .filter(|f| f.path.ends_with(".safetensors") && !f.path.contains('/') && !f.path.starts_with("adapter"))
        .collect();
    // Mistral's repos also have the same weights in a format of their own.
    let usual: Vec<&RepoFile> = weights.iter().filter(|f| f.path.starts_with("model")).copied().collect();
    let weights = if usual.is_empty() { weights } else { usual };
    let parts = weights.first().and_then(|f| split_name(f.path.strip_suffix(".safetensors")?)).map_or(1, |(_, n)| n);
    if weights.len() < parts || weights.is_empty() || !files.iter().any(|file| file.path == "config.json") {
        return None;
    }
    let is_read = |file: &&RepoFile| {
        let path = &*file.path;
        (path.ends_with(".json") && !path.contains('/'))
            || NAMES.contains(&path)
            || (path.starts_with("additional_chat_templates/") && path.ends_with(".jinja"))
    };
    let files = files.iter().filter(is_read).chain(weights).collect();
    Some(Selected { files, folder: Some(String::new()), is_best: false })
}

/// The adapter in a folder of a repo, in the format of PEFT.
fn adapter_folder<'a>(files: &'a [RepoFile], folder: &str) -> Option<Selected<'a>> {
    let find = |name: &str| files.iter().find(|file| file.path.strip_prefix(folder) == Some(name));
    let files = vec![find(ADAPTER_CONFIG)?, find(ADAPTER_WEIGHTS)?];
    Some(Selected { files, folder: Some(folder.trim_end_matches('/').to_owned()), is_best: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, files: &[&str]) -> Result<Vec<String>, HubError> {
        let name = RepoName::parse(name).unwrap().unwrap();
        let files: Vec<RepoFile> = files.iter().map(|path| RepoFile::new(*path)).collect();
        Ok(choose(&name, &files)?.files.iter().map(|file| file.path.clone()).collect())
    }

    const MANY: [&str; 9] = [
        "README.md",
        "M.IQ4_XS.gguf",
        "M.Q4_K_M.gguf",
        "M.Q4_K_S.gguf",
        "M-UD-Q4_K_M.gguf",
        "M.Q8_0.gguf",
        "mmproj-M.Q4_K_M.gguf",
        "M.imatrix.gguf",
        "BF16/M-BF16-00001-of-00002.gguf",
    ];

    #[test]
    fn quantization_is_found_by_its_tag() {
        for (tag, file) in [
            ("Q4_K_M", "M.Q4_K_M.gguf"),
            ("q4_k_m", "M.Q4_K_M.gguf"),
            ("Q4_K", "M.Q4_K_M.gguf"),
            ("Q4", "M.Q4_K_M.gguf"),
            ("UD-Q4_K_M", "M-UD-Q4_K_M.gguf"),
            ("Q8", "M.Q8_0.gguf"),
            ("IQ4_XS", "M.IQ4_XS.gguf"),
        ] {
            assert_eq!(chosen(&format!("o/r:{tag}"), &MANY).unwrap(), [file], "{tag}");
        }
        let error = chosen("o/r:Q6_K", &MANY).unwrap_err().to_string();
        assert!(error.contains("Q6_K") && error.contains("M.Q8_0.gguf") && !error.contains("mmproj"), "{error}");
        assert!(chosen("o/r:BF16", &MANY).is_err(), "half a model is none");
        let parts = ["BF16/M-BF16-00002-of-00002.gguf", "BF16/M-BF16-00001-of-00002.gguf"];
        assert_eq!(chosen("o/r:BF16", &parts).unwrap(), [parts[1], parts[0]]);
        assert_eq!(chosen("o/r:Q2_K", &["Q2_K/m.gguf", "Q3_K/m.gguf"]).unwrap(), ["Q2_K/m.gguf"]);
    }

    #[test]
    fn default_quantization_is_chosen_without_a_tag() {
        assert_eq!(chosen("o/r", &["a.Q8_0.gguf", "a.Q4_K_M.gguf", "a.F16.gguf"]).unwrap(), ["a.Q4_K_M.gguf"]);
        assert_eq!(chosen("o/r", &["a.Q8_0.gguf", "a-f16.gguf"]).unwrap(), ["a.Q8_0.gguf"]);
        assert_eq!(chosen("o/r", &MANY).unwrap(), ["M.Q4_K_M.gguf"]);
        assert_eq!(chosen("o/r", &["model.gguf"]).unwrap(), ["model.gguf"]);
        assert!(matches!(chosen("o/r", &["a.gguf", "b.gguf"]), Err(HubError::ManyFiles { .. })));
        assert!(matches!(chosen("o/r", &["a.Q4_K_M.gguf", "b.Q4_K_M.gguf"]), Err(HubError::ManyFiles { .. })));
        assert!(matches!(chosen("o/r", &["README.md"]), Err(HubError::NoSuchFile { .. })));
        assert_eq!(chosen("hf.co/o/r/mmproj-M.Q4_K_M.gguf", &MANY).unwrap(), ["mmproj-M.Q4_K_M.gguf"]);
        assert!(chosen("hf.co/o/r/x.gguf", &MANY).is_err());
    }

    #[test]
    fn originals_are_preferred_for_quantizing() {
        let original = |files: &[&str]| {
            let name = RepoName::parse("o/r").unwrap().unwrap().original();
            let files: Vec<RepoFile> = files.iter().map(|path| RepoFile::new(*path)).collect();
            choose(&name, &files).unwrap().files.iter().map(|file| file.path.clone()).collect::<Vec<_>>()
        };
        let both = ["config.json", "model.safetensors", "a.Q4_K_M.gguf", "a.F16.gguf"];
        assert_eq!(original(&both), ["config.json", "model.safetensors"]);
        assert_eq!(chosen("o/r", &both).unwrap(), ["a.Q4_K_M.gguf"]);
        assert_eq!(original(&both[2..]), ["a.F16.gguf"]);
        assert_eq!(original(&["a.Q4_K_M.gguf", "a.Q8_0.gguf", "a-bf16.gguf", "a.F16.gguf"]), ["a-bf16.gguf"]);
        assert_eq!(original(&["a.Q4_K_M.gguf", "a.Q2_K.gguf"]), ["a.Q4_K_M.gguf"]);
        let named = RepoName::parse("o/r:Q4_K_M").unwrap().unwrap();
        assert_eq!((named.clone().original(), named.clone().adapter()), (named.clone(), named));
    }

    #[test]
    fn adapters_are_found_as_folders_or_files() {
        let adapter = |name: &str, files: &[&str]| {
            let name = RepoName::parse(name).unwrap().unwrap().adapter();
            let files: Vec<RepoFile> = files.iter().map(|path| RepoFile::new(*path)).collect();
            Ok::<_, HubError>(choose(&name, &files)?.files.iter().map(|file| file.path.clone()).collect::<Vec<_>>())
        };
        let peft = ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"];
        assert_eq!(adapter("o/r", &peft).unwrap(), peft[1..3]);
        assert_eq!(adapter("o/r", &["a-f16.gguf", "README.md"]).unwrap(), ["a-f16.gguf"]);
        assert_eq!(adapter("o/r:b.gguf", &["a.gguf", "b.gguf"]).unwrap(), ["b.gguf"]);
        assert_eq!(adapter("o/r:F16", &["a-F16.gguf", "a-Q8_0.gguf"]).unwrap(), ["a-F16.gguf"]);
        assert!(matches!(adapter("o/r", &["a.gguf", "b.gguf"]), Err(HubError::ManyFiles { .. })));
        let several = ["one/adapter_config.json", "one/adapter_model.safetensors", "two/adapter_config.json"];
        assert_eq!(adapter("o/r:one", &several).unwrap(), several[..2]);
        assert!(matches!(adapter("o/r:two", &several), Err(HubError::NoSuchFile { .. })));
        assert!(adapter("o/r", &several).unwrap_err().to_string().contains("LoRA adapter"));
    }

    #[test]
    fn only_the_needed_files_of_a_folder_are_chosen() {
        let files = [
            "config.json",
            "README.md",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "pytorch_model.bin",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "onnx/model.onnx",
            "onnx/config.json",
            "additional_chat_templates/tool_use.jinja",
            "merges.txt",
        ];
        let found = chosen("o/r", &files).unwrap();
        for path in [
            "config.json",
            "model-00002-of-00002.safetensors",
            "merges.txt",
            "additional_chat_templates/tool_use.jinja",
        ] {
            assert!(found.iter().any(|found| found == path), "{path}");
        }
        assert_eq!(found.len(), 7, "{found:?}");
        assert!(chosen("o/r", &files[..4]).is_err(), "half a model is none");
        assert!(matches!(chosen("o/r:Q4_K_M", &files), Err(HubError::NoGguf { .. })));
    }
}
