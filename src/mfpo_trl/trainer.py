"""`MFPOTrainer`: the order of things in a step, and nothing else."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

from . import _trl
from .arguments import (
    as_mfpo_config,
    check_arguments,
    check_rows,
    check_weights,
    follow_log_level,
    has_image_column,
    keep_batches_whole,
    loading_a_reference,
    loading_safetensors,
    named_evaluations,
    readable_terms,
    slow_adapter,
)
from .batch import (
    FLAT,
    MFPOCollator,
    build_collator,
    choose_layout,
    end_answers,
    given_layout,
    prepare,
    proven,
    reads_rows,
)
from .card import MFPO_CITATION, Training, write_model_card
from .hub import push_checkpoint, push_model, tokens_hidden
from .objective import (
    LogRatios,
    StepMetrics,
    batch_metrics,
    check_batch,
    check_scored,
    columns_of,
    from_preference_batch,
    numbers_of,
    split_batch,
    term_losses,
)
from .objective.terms import Term, Weighted, branches_read, reads_logits, reads_tokens, row_columns
from .order import Curriculum, branches_ranked, check_stage_reference, grouped_sampler
from .reference import References, compared, reference_values, values_of
from .requirements import check_requirements
from .rows import COLUMNS, REFERENCE, is_stored

logger = get_logger(__name__)

Rows: TypeAlias = Dataset | IterableDataset


class MFPOTrainer(DPOTrainer):
    """`trl.DPOTrainer` whose loss has an image term and an anchored reward beside DPO's text term.

    Takes the arguments of `DPOTrainer`, and a `MFPOConfig`; a plain `DPOConfig` is taken to mean the defaults of what
    `MFPOConfig` adds. With `image_loss_weight = anchor_loss_weight = 0` and `add_eos=False`, loss, gradients and metrics
    are DPOTrainer's.

    Rows are TRL's preference rows with `image` or `images`, and optionally `rejected_image(s)`, the dispreferred images,
    or `key_regions`, where to make them (`mfpo_trl.images.regions` says in which forms), and `corruption`, how (the recipe that
    `mfpo build` writes).

    Example:

    ```python
    from datasets import load_dataset
    from mfpo_trl import MFPOConfig, MFPOTrainer

    trainer = MFPOTrainer(
        model="llava-hf/llava-1.5-7b-hf",
        args=MFPOConfig(output_dir="llava-mfpo", max_length=None),
        train_dataset=load_dataset("trl-lib/rlaif-v", split="train"),
    )
    trainer.train()
    ```

    Raises:
        ValueError: a row of a map-style data set without `chosen` or `rejected`, or with an empty one.
        RuntimeError: the installed TRL lacks what is built upon.

    Source: MFPO (arXiv 2410.15334); mDPO (arXiv 2406.11839).
    """

    _tag_names = [*DPOTrainer._tag_names, "mfpo"]
    _name = "MFPO"
    _paper = {
        "title": "Modality-Fair Preference Optimization for Trustworthy MLLM Alignment",
        "id": "2410.15334",
        "citation": MFPO_CITATION,
    }

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        terms: Sequence[Term | Weighted] = (),
    ) -> None:
        _trl.check_contract()
        args = as_mfpo_config(args, model)
        args = args.with_terms(terms) if terms else args
        follow_log_level(args)
        datasets = {"train_dataset": train_dataset, **dict(named_evaluations(eval_dataset))}
        cached = args.precompute_ref_log_probs and has_image_column(train_dataset)
        adapter = model.active_peft_config if isinstance(model, PeftModel) else peft_config
        check_arguments(args, datasets, data_collator, cached, compute_metrics, adapter)
        check_requirements(args, optimizers)
        check_rows(datasets, processing_class, args if data_collator is None else None)
        keep_batches_whole(args, train_dataset)
        self.references = References(self) if cached else None
        # A reference model that was given is gone once the data sets are scored.
        self._reference_given = ref_model is not None
        self._has_adapter = adapter is not None
        check_weights(args, model, ref_model, self._has_adapter or cached)
        with loading_safetensors(args, model), loading_a_reference(args, cached):
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=args,
                data_collator=data_collator,
                train_dataset=_trl.undecoded(train_dataset),
                eval_dataset=_trl.undecoded(eval_dataset),
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        _trl.check_attributes(self)
        self._set_terms(data_collator)
        self._set_layout(data_collator)
        self._leave_terms_of_images()
        if isinstance(self.data_collator, MFPOCollator):
            check_scored(self.data_collator, self.terms)
        self._check_rate()
        self._set_reference()
        self._set_curriculum()

    def _set_terms(self, data_collator: Any) -> None:
        args = self.args
        self.terms: tuple[Weighted, ...] = args.terms
        own = isinstance(data_collator, MFPOCollator)
        self.columns = columns_of(data_collator.branches if own else branches_read(self.terms))
        self.image_beta = args.beta if args.image_beta is None else args.image_beta
        self._step_metrics = StepMetrics()
        if any(own.term.loss is None for own in self.terms):
            _trl.try_loss(self)

    def _leave_terms_of_images(self) -> None:
        self.terms = readable_terms(self.terms, self.train_dataset, self.data_collator, _trl.has_vision_data(self))

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term that is trained, by its name."""
        return {own.term.name: own.weight for own in self.terms}

    def _check_rate(self) -> None:
        if self._has_adapter and self.optimizer is None and (slow := slow_adapter(self.args)):
            logger.warning(f"{slow}.")

    def _set_layout(self, data_collator: Any) -> None:
        args, has_vision_data = self.args, _trl.has_vision_data(self)
        unwrap = self.accelerator.unwrap_model
        policy, reference = unwrap(self.model), None if self.ref_model is None else unwrap(self.ref_model)
        rows_read = reads_rows(args, self.aux_loss_enabled, self.compute_metrics)
        if has_vision_data and data_collator is None:
            self.layout = choose_layout(policy, args.prefix_sharing, reference, rows_read)
            self.data_collator = build_collator(args, self.processing_class, self.train_dataset, self.layout.name)
        else:
            self.layout = given_layout(data_collator, args.prefix_sharing, policy, reference, rows_read)
        for model in (policy, reference):
            if model is not None:
                prepare(model, self.layout.name)
        downgraded = has_vision_data and self.layout.name == FLAT and args.prefix_sharing == "auto"
        (logger.warning if downgraded else logger.info)(f"Layout: {self.layout.name} ({self.layout.reason}).")
        if args.group_by_prompt and (self.layout.name == FLAT or args.per_device_train_batch_size == 1):
            why = self.layout.reason if self.layout.name == FLAT else "per_device_train_batch_size is 1"
            logger.warning(f"group_by_prompt=True orders the rows but nothing is shared between them: {why}.")

    # Reference before training

    def _set_reference(self) -> None:
        # Switching an adapter off brings back the model that it was put into, unless that is trained as well.
        self._keeps_reference = self._has_adapter and not _trl.trained_outside_of_adapter(self.model)
        if self.args.curriculum != "none":
            check_stage_reference(self)
        if self.references is not None:
            self._cache_reference()

    def _cache_reference(self) -> None:
        references = self.references
        assert references is not None
        if not self.layout.proven:
            self.layout = proven(self.layout, self, references.model)
        references.add("train_dataset", self.train_dataset, branches_ranked(self.args, self.train_dataset))
        for name, dataset in named_evaluations(self.eval_dataset):
            references.add(name, dataset)
        references.release()
        _trl.forget_reference_model(self)

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        # Under FSDP, TRL scores with a reference model, because the policy has no shards yet.
        if self.references is not None and not self._has_adapter and not self.is_fsdp_enabled:
            self.args.precompute_ref_log_probs = True

    def _precompute_ref_logps(self, dataset, name, batch_size):
        return dataset if self.references is not None else super()._precompute_ref_logps(dataset, name, batch_size)

    # Curriculum

    def _set_curriculum(self) -> None:
        self.resumed_from: str | None = None
        self.curriculum: Curriculum | None = None
        if self.args.curriculum != "none":
            self._start_curriculum()

    def _start_curriculum(self) -> None:
        self.curriculum = Curriculum(self)
        self.add_callback(self.curriculum)

    # Data

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if _trl.has_vision_data(self):
            _trl.keep_columns(self, [*COLUMNS, *row_columns(self.args.terms)])

    def _remove_unused_columns(self, dataset, description=None):
        first = None if self.references is None else self.references.first(dataset)
        dataset = super()._remove_unused_columns(dataset, description)
        if not _trl.has_vision_data(self) or not isinstance(dataset, Dataset):
            return dataset
        return _trl.NumberedRows.of(dataset, first)

    def _get_train_sampler(self, train_dataset=None):
        if self.curriculum is not None:
            return self.curriculum.sampler()
        if not self.args.group_by_prompt:
            return super()._get_train_sampler(train_dataset)
        return grouped_sampler(
            self.args, self.train_dataset, _trl.micro_batch_size(self), lambda: int(self.state.epoch or 0)
        )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        # TRL's preparation of text, which leaves the end of conversational answers to the chat template.
        given = len(dataset) if isinstance(dataset, Dataset) else 0
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        dropped = given - len(dataset) if given else 0
        if dropped:
            problem = f"leaves no room for the answer in {dropped} of the {given} rows of the {dataset_name} dataset"
            if dropped == given:
                raise ValueError(f"max_length={args.max_length} {problem}; raise it or set it to None")
            logger.warning(f"max_length={args.max_length} {problem}. They are left out.")
        if not args.add_eos:
            return dataset
        options = {"num_proc": args.dataset_num_proc, "desc": f"Ending the answers of the {dataset_name} dataset"}
        options = options if isinstance(dataset, Dataset) else {}
        return dataset.map(end_answers, fn_kwargs={"tokenizer": _trl.tokenizer_of(self)}, **options)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """TRL's, or with `curriculum_scheduler="restart"` that of each stage, one after the other."""
        if self.curriculum is None or self.args.curriculum_scheduler == "single" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        return _trl.set_scheduler(self, self.curriculum.scheduler(optimizer or self.optimizer))

    # Step

    def _compute_loss(self, model, inputs, return_outputs):
        batch = self._checked(inputs)
        policy = self._replay(model, batch)
        policy.score(**({"output_router_logits": True} if self.aux_loss_enabled else {}))
        reference, live = self._reference_values(policy, batch)
        # Of a batch in TRL's layout, there are two branches.
        there = [own for own in self.columns[: policy.pairs.size(1)] if str(own) in reference]
        there = there if "pairs" in inputs else there[:2]
        ratios = compared(policy, reference, there, self.columns, numbers_of(batch), live)

        has_text = any(own.term.loss is None for own in self.terms)
        text, outputs = self._text_loss(policy, reference, return_outputs) if has_text else (None, None)
        losses = term_losses(self.terms, ratios, policy.pairs, self.columns, self.image_beta, text)
        if not losses:
            raise ValueError(
                "only the image term has weight, and the batches of the data_collator have no corrupted branch to read"
            )
        loss = sum(self.term_weights[name] * value for name, value in losses.items())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * policy.outputs.aux_loss
        self._record(policy, losses, ratios, inputs.get("cut"))
        if return_outputs and outputs is None:
            with torch.no_grad():
                outputs = policy()
        return (loss, outputs) if return_outputs else loss

    def _checked(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tables, in which each term finds what it reads."""
        if "pairs" not in inputs:
            return from_preference_batch(inputs)
        check_batch(inputs, self.terms, self.columns)
        if "prefixes" in inputs:
            self._prove_layout()
        return inputs

    def _replay(self, model: Any, batch: dict[str, Any]) -> "_trl.Replay":
        read = {key: value for key, value in batch.items() if key not in ("ref_chosen_logps", "ref_rejected_logps")}
        return _trl.Replay(model, *split_batch(read), batch.get("changed"), logits=reads_logits(self.terms))

    def _prove_layout(self) -> None:
        if self.layout.name == FLAT:
            raise ValueError(
                "the data_collator gives packed rows, and what the model may read is looked at where it is a MFPOCollator itself; "
                "give that as data_collator, or make it with layout='flat' in yours"
            )
        if not self.layout.proven:
            self.layout = proven(self.layout, self, self.model)

    def _reference_values(
        self, policy: "_trl.Replay", batch: dict[str, Any]
    ) -> "tuple[dict[str, Tensor], _trl.Replay | None]":
        """The reference's values of the pairs, (B,) each, by the names of `values_of`; and where terms read single tokens, its scores."""
        if REFERENCE in batch:
            assert self.references is not None, "it numbers the rows"
            values = self.references.values(batch[REFERENCE])
        elif "ref_chosen_logps" in batch:
            # Of a data set without images, which TRL itself scores before training.
            return {"chosen": batch["ref_chosen_logps"], "rejected": batch["ref_rejected_logps"]}, None
        else:
            live = self._replay(self._live_reference(), batch)
            values = reference_values(self, live, self.columns)
            names = values_of(self.columns[: policy.pairs.size(1)], live.changed is not None)
            return dict(zip(names, values.unbind(dim=1), strict=True)), live if reads_tokens(self.terms) else None
        return dict(zip(values_of(self.columns, "changed" in batch), values.unbind(dim=1), strict=True)), None

    def _live_reference(self):
        if self.references is not None and (self._reference_given or not self._keeps_reference):
            raise ValueError(
                "a data set has no cached reference, and with precompute_ref_log_probs=True no reference model is kept; "
                "give it as `eval_dataset` when the trainer is built, or set precompute_ref_log_probs=False"
            )
        return self.model if self.ref_model is None else self.ref_model

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """TRL's; logits and labels are those of the chosen, then of the rejected answers, as `compute_metrics` gets them there.

        Raises:
            ValueError: predictions of packed rows.
        """
        if not prediction_loss_only and "prefixes" in inputs:
            raise ValueError(
                "predictions are logits of one answer a row, and this trainer reads packed rows; build it with "
                "compute_metrics or with prefix_sharing='off'"
            )
        loss, *rows = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if prediction_loss_only or "pairs" not in inputs:
            return loss, *rows
        # Flat rows: all chosen answers, all rejected ones, then those under dispreferred images.
        return loss, *(values[: 2 * len(inputs["pairs"])] for values in rows)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """TRL's, with the reference of a data set that the trainer has not seen computed first where that is possible."""
        if self.references is not None and not isinstance(eval_dataset, str | None):
            can = not self._reference_given and (self._keeps_reference or self.state.global_step == 0)
            for name, dataset in named_evaluations(eval_dataset):
                if can and isinstance(dataset, Dataset) and is_stored(dataset):
                    self.references.add(name, dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _text_loss(
        self, policy: "_trl.Replay", reference: dict[str, Tensor], return_outputs: bool
    ) -> tuple[Tensor, Any]:
        """TRL's loss of the pairs, and the model's outputs where they are asked for."""
        inputs = policy.preference_inputs()
        for answer in ("chosen", "rejected"):
            # TRL weighs tokens by `ld_alpha`.
            inputs[f"ref_{answer}_logps"] = reference.get(f"text_{answer}", reference[answer])
        with _trl.reference_given(self):
            found = super()._compute_loss(policy, inputs, return_outputs)
        loss, outputs = found if return_outputs else (found, None)
        return loss - self.router_aux_loss_coef * policy.outputs.aux_loss if self.aux_loss_enabled else loss, outputs

    def _record(
        self,
        policy: "_trl.Replay",
        losses: dict[str, Tensor],
        logratios: LogRatios,
        cut: Tensor | None,
    ) -> None:
        mode = "train" if self.model.training else "eval"
        counted = batch_metrics(
            losses,
            logratios,
            policy.pairs,
            self.beta,
            self.image_beta,
            self.accelerator,
            policy.inputs["attention_mask"],
            cut,
            # Of a step that nobody takes, as in a call of `compute_loss`, there is one.
            getattr(self, "current_gradient_accumulation_steps", 1) if mode == "train" else None,
        )
        if self.curriculum is not None and mode == "train":
            counted |= {name: (value, 1) for name, value in self.curriculum.metrics().items()}
        self._step_metrics.add(mode, counted)

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        metrics = _trl.metrics_of(self, mode)
        means = self._step_metrics.pop(mode, metrics.get("rewards/margins", ()))
        metrics.update({name: [value] for name, value in means.items()})
        super().log(logs, start_time)
        if "train_runtime" in logs:
            # Of the steps that this call of `train` took: those of a run that it goes on from are not counted.
            cut, answers = self._step_metrics.pop_cut()
            if cut:
                logger.warning(
                    f"max_length={self.args.max_length} has cut the end of {cut} of the {answers} answers that were trained on in "
                    "this run."
                )

    # Checkpoints

    def _save(self, output_dir=None, state_dict=None):
        with tokens_hidden(self):
            super()._save(output_dir, state_dict)

    push_to_hub, _push_from_checkpoint = push_model, push_checkpoint

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.resumed_from = resume_from_checkpoint
        if _trl.has_full_weights(self, resume_from_checkpoint):
            _trl.load_full_weights(self.model, resume_from_checkpoint)
        else:
            with _trl.precision_kept(self.model):
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if _trl.has_full_weights(self, self.state.best_model_checkpoint):
            _trl.load_full_weights(self.model, self.state.best_model_checkpoint)
        else:
            with _trl.precision_kept(self.model):
                super()._load_best_model()

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """TRL's model card, with what was trained on, with which terms and with which dispreferred images."""
        if not self.is_world_process_zero():
            return
        # A local path is nobody else's business.
        dataset_name = None if dataset_name is not None and os.path.exists(dataset_name) else dataset_name
        card = _trl.card_of(self, super().create_model_card, model_name, dataset_name, tags)
        write_model_card(self._as_told(), card, model_name, dataset_name)

    def _as_told(self) -> Training:
        return Training(
            args=self.args,
            model=self.model,
            accelerator=self.accelerator,
            state=self.state,
            train_dataset=self.train_dataset,
            data_collator=self.data_collator,
            method=_trl.method_of(self),
            loss_types=self.loss_types,
            terms=self.terms,
            image_beta=self.image_beta,
            plan=None if self.curriculum is None else self.curriculum.plan,
            evaluations=[] if self.curriculum is None else self.curriculum.evaluations(),
            has_images=_trl.has_vision_data(self),
            micro_batch_size=_trl.micro_batch_size(self),
            is_deepspeed_enabled=self.is_deepspeed_enabled,
        )
