//! quick timing
use fewbit_kernels::*; use fewbit_quant::TensorType; use std::time::Instant;
fn main(){
  let threads: usize = std::env::args().nth(1).map(|s| s.parse().unwrap()).unwrap_or(1);
  for isa in Isa::available().into_iter().skip(1) {
    let e = Engine::new(isa, threads).unwrap();
    for ty in [TensorType::Q4_0,TensorType::Q4_1,TensorType::Q8_0,TensorType::Q4_K,TensorType::Q5_K,TensorType::Q6_K,TensorType::Q5_0,TensorType::F16] {
      for (rows,cols,n,reps) in [(4096,2048,512,2usize),(32768,2048,1,10),(32768,2048,4,5),(32768,2048,8,5)] {
        let mut bytes = vec![0x11u8; ty.row_bytes(rows*cols).unwrap()];
        for (i,b) in bytes.iter_mut().enumerate(){ *b = (i as u32).wrapping_mul(2654435761).rotate_left(9) as u8 & 0x3f; }
        let t0=Instant::now(); let w = e.pack(ty, rows, cols, &bytes).unwrap(); let tp=t0.elapsed();
        let x: Vec<f32> = (0..n*cols).map(|i| ((i*7919)%1000) as f32/500.0-1.0).collect();
        let mut a = Activations::new(); e.activate(&x, cols, ActivationKinds::of([ty]), &mut a);
        let mut out = vec![0.0; n*rows]; e.matmul(&w,&a,&mut out);
        let mut best=f64::MAX; for _ in 0..reps.max(3) { let t=Instant::now(); e.matmul(&w,&a,&mut out); best=best.min(t.elapsed().as_secs_f64()); }
        println!("{isa} {ty} n={n}: {:.1} GMAC/s {:.1} GB/s  pack {:.2} GB/s", (rows*cols*n) as f64/best/1e9, w.n_bytes() as f64/best/1e9, bytes.len() as f64/tp.as_secs_f64()/1e9);
      }
    }
  }
}
