# Everything runs in .venv, which is made when missing. PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
FILES ?= $(wildcard examples/*)
OUT ?= out
GENERATORS := runs/generators
T2V := runs/t2v
I23D := runs/i23d
VL_NANO := runs/vl-nano

.PHONY: setup test lint reconstruct nano generators t2v-nano i23d-nano vl-nano lmms clean

setup: .venv/.dev

.venv/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[3d]"
	@touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q -n auto --dist loadfile

reconstruct: .venv/.base
	$(BIN)/atoken reconstruct $(FILES) -o $(OUT)

# Trains the bundled models anew and puts them in place; interrupted, it goes on where it was. What is in the cache is
# not fetched again; docs/data.md says how to get it there without a network.
nano: .venv/.dev
	$(BIN)/atoken fetch photos furniture st-lpips
	$(BIN)/atoken train --preset nano --stage all --data scripts/nano.toml \
		--set tasks.image.terms.stlpips=0.02 -o runs
	$(BIN)/python -m scripts.bundle_nano runs

# Trains the bundled generators anew on tokens of the bundled nano and nano-d, and puts them in place; interrupted, it
# goes on where it was. docs/generation.md says what of and how long.
generators: .venv/.dev
	$(BIN)/atoken fetch photos
	$(BIN)/atoken tokenize scripts/generators.toml --model nano -o $(GENERATORS)/tokens-nano \
		--resize 128 --crop 128 --flip --latents float16
	$(BIN)/python -m generation train dit --store $(GENERATORS)/tokens-nano -o $(GENERATORS)/dit --evaluate-every 1000
	$(BIN)/atoken tokenize scripts/generators.toml --model nano-d -o $(GENERATORS)/tokens-nano-d \
		--resize 128 --crop 128 --flip
	$(BIN)/python -m generation train tokenbridge --store $(GENERATORS)/tokens-nano-d \
		-o $(GENERATORS)/tokenbridge --evaluate-every 1000
	$(BIN)/python -m scripts.bundle_generators $(GENERATORS)

# Trains the bundled text-to-video model anew, first on images, then on images and videos, and puts it in place.
t2v-nano: .venv/.dev
	$(BIN)/atoken tokenize scripts/t2v-nano.toml --model nano -o $(T2V)/tokens --latents float16
	$(BIN)/python -m generation train mmdit --store $(T2V)/tokens --modality image -o $(T2V)/images --set steps=2500
	$(BIN)/python -m generation train mmdit --store $(T2V)/tokens --start $(T2V)/images/model -o $(T2V)/videos \
		--evaluate-every 1000
	$(BIN)/python -m scripts.bundle_generators $(T2V) --videos

# Trains a small image-to-3D model: structure of voxels, its flow, the flow of their tokens; docs/generation.md.
i23d-nano: .venv/.dev
	$(BIN)/atoken fetch furniture
	$(BIN)/atoken tokenize scripts/i23d-nano.toml --model nano -o $(I23D)/tokens --voxels 32 --latents float16
	$(BIN)/python -m generation views scripts/i23d-nano.toml --store $(I23D)/tokens -o $(I23D)/views -n 8 --size 128
	$(BIN)/python -m generation train structure-vae --store $(I23D)/tokens -o $(I23D)/structure-vae
	$(BIN)/python -m generation train structure --store $(I23D)/tokens --views $(I23D)/views \
		--start $(I23D)/structure-vae/model -o $(I23D)/structure
	$(BIN)/python -m generation train slat --store $(I23D)/tokens --views $(I23D)/views \
		--start $(I23D)/structure/model -o $(I23D)/slat

# Trains the bundled vision-language model anew on questions about generated media and photographs, and puts it in place;
# interrupted, it goes on where it was. docs/mllm.md says what of and how long.
vl-nano: .venv/.dev
	$(BIN)/atoken fetch photos smollm2
	$(BIN)/python -m scripts.vl_texts $(VL_NANO)/texts.jsonl
	$(BIN)/python -m mllm train --llm smollm2 --tower nano --trains projector+lora --data scripts/vl-nano.yaml \
		--validation scripts/vl-nano-validation.yaml -o $(VL_NANO) --set \
		tokens=320 micro_batches=3 warmup=100 lr=1e-3 final_lr=1e-5 language_lr=0.4 ema=0.995 rank=8 alpha=16 \
		frames=64 slow_frames=16 slow_pool=2 fast_output=2 video_mode=tubelet video_pixels=9216 \
		image_pixels=9216 image_pool=1 asset_voxels=1024 asset_tokens=64
	$(BIN)/python -m scripts.bundle_vl $(VL_NANO)

# lmms-eval in an environment of its own, 2.4 GB, and the same questions to one model by it and by our harness. The
# torchvision that it brings does not load beside the torch of a CPU; nothing here needs it.
VL ?= vl-nano
.lmms/.done: pyproject.toml constraints.txt
	test -x .lmms/bin/python || $(PYTHON) -m venv .lmms
	.lmms/bin/python -m pip install --quiet lmms-eval==0.7.3 "filelock<4" "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	.lmms/bin/python -m pip uninstall --quiet --yes torchvision
	.lmms/bin/python -m pip install --quiet -e ".[3d,mllm]"
	@touch $@

lmms: .lmms/.done
	.lmms/bin/python -m scripts.compare_lmms $(VL)

clean:
	rm -rf out .pytest_cache .mypy_cache .ruff_cache
