;; Products of rows with rows, four numbers at a time. `npm run kernel` writes src/products_kernel.ts from it.
;; Rows have `bytes` bytes, a multiple of 16; the number of right rows `m` is a multiple of 4. All lie where the caller says.
(module
  (memory (export "memory") 1)

  (func $sum (param $lanes v128) (result f32)
    (f32.add
      (f32.add (f32x4.extract_lane 0 (local.get $lanes)) (f32x4.extract_lane 1 (local.get $lanes)))
      (f32.add (f32x4.extract_lane 2 (local.get $lanes)) (f32x4.extract_lane 3 (local.get $lanes)))))

  (func (export "products") (param $left i32) (param $right i32) (param $out i32) (param $n i32) (param $m i32) (param $bytes i32)
    (local $end i32) (local $column i32) (local $from i32) (local $stop i32) (local $values v128)
    (local $b i32) (local $c i32) (local $d i32) (local $a i32)
    (local $first v128) (local $second v128) (local $third v128) (local $fourth v128)
    (local.set $end (i32.add (local.get $left) (i32.mul (local.get $n) (local.get $bytes))))
    (block $rows_done
      (loop $rows
        (br_if $rows_done (i32.ge_u (local.get $left) (local.get $end)))
        (local.set $column (i32.const 0))
        (local.set $a (local.get $right))
        (block $columns_done
          (loop $columns
            (br_if $columns_done (i32.ge_u (local.get $column) (local.get $m)))
            (local.set $b (i32.add (local.get $a) (local.get $bytes)))
            (local.set $c (i32.add (local.get $b) (local.get $bytes)))
            (local.set $d (i32.add (local.get $c) (local.get $bytes)))
            (local.set $first (v128.const f32x4 0 0 0 0))
            (local.set $second (v128.const f32x4 0 0 0 0))
            (local.set $third (v128.const f32x4 0 0 0 0))
            (local.set $fourth (v128.const f32x4 0 0 0 0))
            (local.set $from (local.get $left))
            (local.set $stop (i32.add (local.get $left) (local.get $bytes)))
            (loop $depth
              (local.set $values (v128.load (local.get $from)))
              (local.set $first (f32x4.add (local.get $first) (f32x4.mul (local.get $values) (v128.load (local.get $a)))))
              (local.set $second (f32x4.add (local.get $second) (f32x4.mul (local.get $values) (v128.load (local.get $b)))))
              (local.set $third (f32x4.add (local.get $third) (f32x4.mul (local.get $values) (v128.load (local.get $c)))))
              (local.set $fourth (f32x4.add (local.get $fourth) (f32x4.mul (local.get $values) (v128.load (local.get $d)))))
              (local.set $a (i32.add (local.get $a) (i32.const 16)))
              (local.set $b (i32.add (local.get $b) (i32.const 16)))
              (local.set $c (i32.add (local.get $c) (i32.const 16)))
              (local.set $d (i32.add (local.get $d) (i32.const 16)))
              (local.set $from (i32.add (local.get $from) (i32.const 16)))
              (br_if $depth (i32.lt_u (local.get $from) (local.get $stop))))
            (f32.store (local.get $out) (call $sum (local.get $first)))
            (f32.store offset=4 (local.get $out) (call $sum (local.get $second)))
            (f32.store offset=8 (local.get $out) (call $sum (local.get $third)))
            (f32.store offset=12 (local.get $out) (call $sum (local.get $fourth)))
            (local.set $out (i32.add (local.get $out) (i32.const 16)))
            (local.set $a (local.get $d))
            (local.set $column (i32.add (local.get $column) (i32.const 4)))
            (br $columns)))
        (local.set $left (i32.add (local.get $left) (local.get $bytes)))
        (br $rows)))))
