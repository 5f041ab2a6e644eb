"""Small files in the formats of public benchmarks, made for the tests.

Each module writes the same questions in LLaVA's layout (`write_llava`) and in the Hub's (`write_hub`), where it has
both.
"""
