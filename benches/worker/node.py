"""The stand-in's StandinWork for a real ComfyUI, and the times of its executions (STANDIN_TIMES)."""
import json
import os
import time

import comfy.model_management
import execution
import folder_paths

MIB = 1 << 20
TIMES = os.environ.get("STANDIN_TIMES")


class StandinWork:
    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "standin"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {"default": ""}),
                             "seconds": ("FLOAT", {"default": 0.2, "max": 86400.0}),
                             "megabytes": ("FLOAT", {"default": 8.0, "max": 100000.0}),
                             "filename_prefix": ("STRING", {"default": "work"})},
                "optional": {"seed": ("INT", {"default": 0, "max": 2**53})}}

    def run(self, file, seconds, megabytes, filename_prefix, seed=0):
        if file:
            with open(folder_paths.get_annotated_filepath(file), "rb") as source:
                while source.read(MIB):
                    comfy.model_management.throw_exception_if_processing_interrupted()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(min(left, 0.01))
        left = round(megabytes * MIB)
        if not left:
            return {"ui": {}}
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory())
        target = f"{name}_{counter:05}_.bin"
        block = os.urandom(MIB)
        with open(os.path.join(folder, target), "wb") as output:
            for start in range(0, left, MIB):
                output.write(block[:left - start])
        return {"ui": {"files": [{"filename": target, "subfolder": subfolder, "type": "output"}]}}


def timed(execute):
    def wrapper(*arguments, **named):
        begin = time.time()
        try:
            return execute(*arguments, **named)
        finally:
            with open(TIMES, "a", encoding="utf-8") as times:
                times.write(json.dumps({"start": begin, "end": time.time()}) + "\n")

    return wrapper


if TIMES:
    execution.PromptExecutor.execute = timed(execution.PromptExecutor.execute)

NODE_CLASS_MAPPINGS = {"StandinWork": StandinWork}
