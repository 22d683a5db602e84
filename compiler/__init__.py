"""The compiler: spec -> plan -> passes -> link -> gates. Begin reading at `compiler.pipeline`."""
