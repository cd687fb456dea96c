//! quick
use fewbit_model::*; use fewbit_format::GgufFile; use std::time::Instant;
fn main(){
  let path = std::env::args().nth(1).unwrap(); let threads: usize = std::env::args().nth(2).unwrap().parse().unwrap();
  let n: usize = std::env::args().nth(3).map(|s|s.parse().unwrap()).unwrap_or(64);
  let t=Instant::now(); let f = GgufFile::open(path.as_ref()).unwrap(); println!("open {:?}", t.elapsed());
  let d = Decoder::load(&f, &LoadOptions::new().threads(threads)).unwrap(); println!("load {:?} {} {}", t.elapsed(), d.isa(), d.weight_bytes());
  let mut c = d.new_cache(); let mut tok=vec![1u32]; let mut out=vec![];
  let t=Instant::now();
  for _ in 0..n { let l = d.forward(&mut [Chunk{cache:&mut c,tokens:&tok,logits:LogitsFor::Last}]).unwrap(); let r=l.row(0); let b=(0..r.len()).fold(0,|b,i| if r[i]>r[b]{i}else{b}); out.push(b); tok=vec![b as u32]; }
  println!("decode {:.1} tok/s {:?}", n as f64/t.elapsed().as_secs_f64(), &out[..out.len().min(40)]);
  for _ in 0..3 { let mut c = d.new_cache(); let toks: Vec<u32> = (0..512).map(|i| (i*37%500) as u32).collect(); let t=Instant::now();
  d.forward(&mut [Chunk{cache:&mut c,tokens:&toks,logits:LogitsFor::Last}]).unwrap(); println!("prefill {:.1} tok/s", 512.0/t.elapsed().as_secs_f64()); }
}
