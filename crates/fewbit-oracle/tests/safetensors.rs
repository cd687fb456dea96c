//! Safetensors files against the crate `safetensors`: it writes them, and both read what random damage leaves.

use std::collections::HashMap;

use fewbit_format::SafetensorsModel;
use fewbit_format::safetensors::{Dtype, parse};
use fewbit_quant::TensorType;
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as TheirDtype, TensorView, serialize};

/// Every type of the format, in both crates' terms.
const DTYPES: [(TheirDtype, Dtype); 22] = [
    (TheirDtype::BOOL, Dtype::BOOL),
    (TheirDtype::F4, Dtype::F4),
    (TheirDtype::F6_E2M3, Dtype::F6_E2M3),
    (TheirDtype::F6_E3M2, Dtype::F6_E3M2),
    (TheirDtype::U8, Dtype::U8),
    (TheirDtype::I8, Dtype::I8),
    (TheirDtype::F8_E5M2, Dtype::F8_E5M2),
    (TheirDtype::F8_E4M3, Dtype::F8_E4M3),
    (TheirDtype::F8_E8M0, Dtype::F8_E8M0),
    (TheirDtype::F8_E4M3FNUZ, Dtype::F8_E4M3FNUZ),
    (TheirDtype::F8_E5M2FNUZ, Dtype::F8_E5M2FNUZ),
    (TheirDtype::I16, Dtype::I16),
    (TheirDtype::U16, Dtype::U16),
    (TheirDtype::F16, Dtype::F16),
    (TheirDtype::BF16, Dtype::BF16),
    (TheirDtype::I32, Dtype::I32),
    (TheirDtype::U32, Dtype::U32),
    (TheirDtype::F32, Dtype::F32),
    (TheirDtype::C64, Dtype::C64),
    (TheirDtype::F64, Dtype::F64),
    (TheirDtype::I64, Dtype::I64),
    (TheirDtype::U64, Dtype::U64),
];

/// A file with a tensor of every type, of the shape `[2, 4]`, and one without elements.
fn every_type() -> Vec<u8> {
    let data: Vec<_> = (0..64).collect();
    let mut views: Vec<_> = DTYPES
        .iter()
        .map(|(theirs, ours)| {
            let n_bytes = 8 * theirs.bitsize() / 8;
            (format!("t.{ours}"), TensorView::new(*theirs, vec![2, 4], &data[..n_bytes]).unwrap())
        })
        .collect();
    views.push(("t.empty".to_owned(), TensorView::new(TheirDtype::F32, vec![3, 0], &[]).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt\n".to_owned())]);
    serialize(views, Some(metadata)).unwrap()
}

#[test]
fn every_dtype_is_read() {
    let model = SafetensorsModel::from_bytes(every_type()).unwrap();
    assert_eq!(model.tensors().len(), DTYPES.len() + 1);
    assert_eq!(model.metadata().get("format").map(String::as_str), Some("pt\n"));
    for (theirs, ours) in DTYPES {
        assert_eq!(Dtype::from_name(ours.name()), Some(ours));
        assert_eq!(ours.bits(), theirs.bitsize() as u64);
        let tensor = model.tensor(&format!("t.{ours}")).unwrap();
        assert_eq!((tensor.shape.as_slice(), tensor.dtype), (&[2, 4][..], ours));
        let expected: Vec<_> = (0..theirs.bitsize() as u8).collect();
        assert_eq!(model.tensor_bytes(tensor), expected);
        if let Some(ty) = ours.tensor_type() {
            assert_eq!(ty.block_bytes() as u64 * 8, ours.bits());
            assert_eq!(ty.name(), ours.name());
        }
    }
    assert_eq!(Dtype::BF16.tensor_type(), Some(TensorType::BF16));
    let empty = model.tensor("t.empty").unwrap();
    assert_eq!((model.tensor_bytes(empty), empty.shape.as_slice()), (&[][..], &[3, 0][..]));
    assert!(model.shards().eq([None]));
}

#[test]
fn a_file_on_disk_is_mapped_and_released() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = every_type();
    std::fs::write(&path, &bytes).unwrap();
    let by_folder = SafetensorsModel::open(folder.path()).unwrap();
    let by_file = SafetensorsModel::open(&path).unwrap();
    assert_eq!(by_folder.tensors(), by_file.tensors());
    assert!(by_folder.shards().eq([Some(path.as_path())]));
    assert_eq!(by_folder.file_bytes(), bytes.len() as u64);
    let tensor = by_folder.tensor("t.F64").unwrap();
    by_folder.release(tensor);
    assert_eq!(by_folder.tensor_bytes(tensor), (0..64).collect::<Vec<_>>());
}

#[test]
fn truncated_files_are_rejected() {
    let bytes = every_type();
    for n in 0..bytes.len() {
        assert!(parse(&bytes[..n]).is_err(), "cut at byte {n}");
    }
}

/// What this crate accepts, the other accepts, and both see the same tensors.
fn check_against_safetensors_crate(bytes: &[u8]) {
    let Ok(ours) = parse(bytes) else { return };
    let theirs = SafeTensors::deserialize(bytes).expect("the other crate accepts it as well");
    assert_eq!(ours.tensors.len(), theirs.len());
    for tensor in &ours.tensors {
        let view = theirs.tensor(&tensor.name).unwrap();
        let range = tensor.offset as usize..(tensor.offset + tensor.n_bytes) as usize;
        assert_eq!(view.data(), &bytes[range]);
        assert!(view.shape().iter().map(|&dim| dim as u64).eq(tensor.shape.iter().copied()));
        assert_eq!(view.dtype().bitsize() as u64, tensor.dtype.bits());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_are_rejected_or_read_like_safetensors_does(
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![
                any::<u8>(),
                prop::sample::select(b"0123456789[]{},:\"".to_vec()),
            ]),
            0..4,
        ),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = every_type();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            // Cuts near the end are the ones that the header does not show.
            bytes.truncate(bytes.len() - cut.index(10));
        }
        check_against_safetensors_crate(&bytes);
    }

    #[test]
    fn random_headers_do_not_panic(
        text in r#"\{("[a-c_]{1,2}":\{"dtype":"(F32|U8|F4)","shape":\[[0-9]?\],"data_offsets":\[[0-9],[0-9]{1,2}\]\},?){0,3}\}"#,
        n_data in 0..20usize,
    ) {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend((0..n_data).map(|i| i as u8));
        check_against_safetensors_crate(&bytes);
    }
}
