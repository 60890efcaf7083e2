"""BibTeX of what every card cites."""

DPO_CITATION = """\
@inproceedings{rafailov2023direct,
    title     = {{Direct Preference Optimization: Your Language Model is Secretly a Reward Model}},
    author    = {Rafael Rafailov and Archit Sharma and Eric Mitchell and Christopher D. Manning and Stefano Ermon and Chelsea Finn},
    booktitle = {Advances in Neural Information Processing Systems 36},
    year      = 2023,
    url       = {https://arxiv.org/abs/2305.18290}
}"""

MDPO_CITATION = """\
@inproceedings{wang2024mdpo,
    title     = {{mDPO: Conditional Preference Optimization for Multimodal Large Language Models}},
    author    = {Fei Wang and Wenxuan Zhou and James Y. Huang and Nan Xu and Sheng Zhang and Hoifung Poon and Muhao Chen},
    booktitle = {Proceedings of the 2024 Conference on Empirical Methods in Natural Language Processing},
    year      = 2024
}"""

MFPO_CITATION = """\
@inproceedings{jiang2025modality,
    title        = {{Modality-Fair Preference Optimization for Trustworthy MLLM Alignment}},
    author       = {Songtao Jiang and Yan Zhang and Ruizhe Chen and Tianxiang Hu and Yeying Jin and Qinglin He and Yang Feng and Jian Wu and Zuozhu Liu},
    year         = 2025,
    booktitle    = {Proceedings of the Thirty-Fourth International Joint Conference on Artificial Intelligence, IJCAI 2025},
    url          = {https://arxiv.org/abs/2410.15334}
}"""

TRL_CITATION = """\
@software{vonwerra2020trl,
    title   = {{TRL: Transformers Reinforcement Learning}},
    author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and \
Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallou\u00e9dec, Quentin},
    license = {Apache-2.0},
    url     = {https://github.com/huggingface/trl},
    year    = 2020
}"""
