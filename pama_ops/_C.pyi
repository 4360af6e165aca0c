compiler: str
torch_built_with: str
cuda: str
cuda_architectures: str
cuda_left_out: str

def gram_level() -> int: ...
def clone_level() -> int: ...
